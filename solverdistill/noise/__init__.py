"""Noise levels, the paths they lie on, and grids of them."""
