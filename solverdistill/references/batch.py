"""What a batch of reference data holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from solverdistill.noise.levels import Level
from solverdistill.references.trajectory import Trajectory as ReferenceTrajectory


class Batch(NamedTuple):
    """Reference data of a batch of samples.

    Args:
        noise: Unit-normal noise. Shape: (batch, ...).
        targets: Reference states at the student's grid points after the first, where these are fixed. Shape:
            (steps, batch, ...); empty (0, batch, ...) for a student that learns its noise levels.
        end: Reference end point. Shape: (batch, ...).
        cond: Condition, or None.
        reference: The whole reference trajectory, for students that learn their noise levels and for local objectives.
        positions: Positions of the samples in the training set. Shape: (batch,).
    """

    noise: Tensor
    targets: Tensor
    end: Tensor
    cond: Any = None
    reference: ReferenceTrajectory | None = None
    positions: Tensor | None = None

    def targets_at(self, levels: Sequence[Level]) -> Tensor:
        """Reference states at the levels of the student's grid after the first. Shape: (steps, batch, ...)."""
        if self.reference is None:
            return self.targets
        return self.reference.at(levels).to(self.noise.dtype)
