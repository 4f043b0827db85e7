"""Solver families: one file each, and the door to them, `build`."""

from solverdistill.families.registry import (
    ALIASES,
    CLASSICAL,
    PUBLISHED,
    ROSTER,
    build,
    build_for_depth,
    build_for_nfe,
    rebuild,
    steps_for_nfe,
)

__all__ = [
    "ALIASES",
    "CLASSICAL",
    "PUBLISHED",
    "ROSTER",
    "build",
    "build_for_depth",
    "build_for_nfe",
    "rebuild",
    "steps_for_nfe",
]
