"""Learned solver families, one file per paper."""
