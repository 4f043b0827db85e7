"""A batch of reference solutions, readable at any noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solverdistill.noise.levels import Level
from solverdistill.noise.paths import Path


@dataclass  # not frozen: Lightning rebuilds batches field by field when it changes their dtype
class Trajectory:
    """A batch of reference solutions on a fine grid, readable at any level in between.

    Reading between the points costs, as largest RMSE of a sample divided by the scale of its state, 4e-4 (toy mixture)
    or 2e-5 (edm_digits) on the default grid of 40 steps, and 10 to 16 times less on twice as many; storing float32
    instead of float64 costs 2e-7, float16 would cost 5e-4.

    Args:
        path: Path of the reference solver.
        clock: Straight-coordinate clock of the fine grid, decreasing, float64 on the host. Shape: (points,).
        states: States in straight coordinates. Shape: (points, batch, ...).
        slopes: dy/du at the same points. Shape as states.
    """

    path: Path
    clock: Tensor
    states: Tensor
    slopes: Tensor

    def at(self, levels: Sequence[Level]) -> Tensor:
        """States at given levels, scaled as the levels are, by cubic Hermite interpolation in the clock.

        Fourth-order accurate in the fine grid's step, exact at its points, differentiable in the levels. Shape:
        (levels, batch, ...).
        Raises:
            ValueError: a level is noisier than the trajectory's beginning.
        """
        return torch.stack([self._at(level) for level in levels])

    def end(self) -> Tensor:
        """The last state, in the path's own scale. Shape: (batch, ...)."""
        return self.states[-1] * self.path.scale(self.path.from_clock(self.clock[-1]))

    def take(self, index: Tensor) -> Trajectory:
        """The trajectories of some samples of the batch."""
        return replace(self, states=self.states[:, index], slopes=self.slopes[:, index])

    def to(self, *args: Any, **kwargs: Any) -> Trajectory:
        """Move states and slopes as `Tensor.to` does; the clock stays on the host."""
        return replace(self, states=self.states.to(*args, **kwargs), slopes=self.slopes.to(*args, **kwargs))

    def _at(self, level: Level) -> Tensor:
        u = self.path.clock_of(level)
        if bool(u > 2 * self.clock[0] - self.clock[1]):
            raise ValueError(
                f"the reference begins at clock {float(self.clock[0]):g} and has no state at {float(u):g}; "
                "begin the student's grid at or below the teacher's largest noise level"
            )
        right = int(torch.searchsorted(-self.clock, -u).clamp(1, len(self.clock) - 1))
        u0, u1 = self.clock[right - 1], self.clock[right]
        width, tau = u1 - u0, (u - u0) / (u1 - u0)
        y = (
            self.states[right - 1] * ((1 + 2 * tau) * (1 - tau) ** 2)
            + self.states[right] * (tau**2 * (3 - 2 * tau))
            + self.slopes[right - 1] * (width * tau * (1 - tau) ** 2)
            + self.slopes[right] * (width * tau**2 * (tau - 1))
        )
        return y * (level.hypot() / self.path.straight(u).hypot())
