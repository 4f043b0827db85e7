"""What a step of one evaluation moves along: the newest slope (DDIM), or a mean of the newest ones (Adams-Bashforth).

Methods that correct a step by what its increment stands for, an image or a noise, ask for the slope g with
y' = y + (u' - u) g, whatever the base.
"""

from __future__ import annotations

from dataclasses import dataclass

from solverdistill.families.base import History, State, combine
from solverdistill.families.classical.adams import AdamsBashforth
from solverdistill.families.ode import OdeFamily


@dataclass(frozen=True, kw_only=True)
class NewestSlope(OdeFamily):
    """Steps along the newest slope alone."""

    def average(self, i: int, slopes: History) -> State:
        """Slope of the base's step from the newest slopes there are, newest first."""
        return slopes[0]

    def remembered(self) -> int:
        """Number of earlier slopes that a step wants."""
        return 0


@dataclass(frozen=True, kw_only=True)
class MeanSlope(NewestSlope, AdamsBashforth):
    """Steps along the mean of the newest slopes with the weights of an Adams-Bashforth method."""

    def average(self, i: int, slopes: History) -> State:
        width = self.timeline.clock[i + 1] - self.timeline.clock[i]
        return combine(slopes, self.weights(i, len(slopes), self.timeline) / width)

    def remembered(self) -> int:
        return self.max_order - 1
