"""Gradient descent as Lightning modules."""
