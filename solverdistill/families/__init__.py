"""Solver families: one file each, and the door to them, `build`."""

from solverdistill.families.registry import ALIASES, CLASSICAL, PUBLISHED, ROSTER, build, steps_for_nfe

__all__ = ["ALIASES", "CLASSICAL", "PUBLISHED", "ROSTER", "build", "steps_for_nfe"]
