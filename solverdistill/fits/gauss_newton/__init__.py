"""Damped second-order steps on the end points."""
