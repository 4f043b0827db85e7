"""Families that integrate the probability-flow ODE by its slope, in straight coordinates.

With y = x / c(s) and the clock u(s) of the path, ``dy/du = (y - denoised) / u`` on every path, and one Euler step in u
is DDIM. Runge-Kutta and Adams-Bashforth methods of the field are written in these coordinates (EDM units for every
path but flow, whose own time is straight already).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, State
from solverdistill.noise.levels import Level, analytical_denoised
from solverdistill.noise.paths import Path


class Slope:
    """Right-hand side of the ODE: slope(y, u) = (y - denoised(y; u)) / u.

    Args:
        path: Gives the level of a straight-coordinate state.
        denoise: Evaluator of the trace or of the eager run.
    """

    def __init__(self, path: Path, denoise: Evaluator) -> None:
        self.path, self.denoise = path, denoise

    def __call__(self, y: State, u: Tensor, told: Level | None = None) -> State:
        """Evaluate the network at y, whose clock is u, telling it `told` where that differs from u's level."""
        return (y - self.denoise(y, self.path.straight(u), told)) / u

    def analytical(self, y: State, u: Tensor) -> State:
        """The slope for zero-mean, unit-variance data, without a network call (y / sqrt(1 + u^2) in EDM units)."""
        return (y - analytical_denoised(y, self.path.straight(u))) / u


@dataclass(frozen=True, kw_only=True)
class OdeFamily(Family):
    """A family whose `update` works in straight coordinates.

    Args:
        afs: Analytical first step: replace the first slope by that of unit-variance data and save an evaluation.
    """

    afs: bool = False

    def __post_init__(self) -> None:
        if bool(self.timeline.scale[0] == 0):
            raise ValueError(
                f"{self.name} cannot start at alpha = 0 on the {self.path.name} path, where sigma / alpha is infinite; "
                "take dpmpp or unipc, or begin the grid slightly lower"
            )

    @abstractmethod
    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        """Advance the straight-coordinate state from clock value i to i + 1."""

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Any) -> tuple[State, History]:
        scale = self.scales(values)
        y, history = self.update(i, x / scale[i], history, Slope(self.path, denoise), values)
        return y * scale[i + 1], history

    def scales(self, values: Any) -> Tensor:
        """Scale of the path's states at every grid point; for families whose learned times are in no `Timeline`."""
        return self.timeline_of(values).scale

    def first_slope(self, i: int, y: State, u: Tensor, slope: Slope, told: Level | None = None) -> State:
        """Slope at the beginning of step i, analytical where `afs` says so."""
        return slope.analytical(y, u) if self.afs and i == 0 else slope(y, u, told)
