"""Distances between pairs of images and between sets of them."""
