"""Targets: reference trajectories made once, cached, and served in batches."""

from solverdistill.targets.making import (
    CHUNK,
    Progress,
    Source,
    Targets,
    TargetSettings,
    describe,
    make_targets,
)
from solverdistill.targets.serving import SeededBatches, TargetData

__all__ = [
    "CHUNK",
    "Progress",
    "SeededBatches",
    "Source",
    "TargetData",
    "TargetSettings",
    "Targets",
    "describe",
    "make_targets",
]
