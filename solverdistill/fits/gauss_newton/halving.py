"""Successive halving of descents: several take the first steps, and the best goes on.

A descent ends in one of many minima, and the error of its start says little about which. After a few steps it says
more, so all descents take one step, the better half of them two more, the better half of these four more, until one is
left. A descent goes on as it is, with its damping and curvature: one that began anew would lose what it has learned.
Descents of different families need more steps before they can be compared: one that begins higher often ends lower.
Reference: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from solverdistill.fits.protocol import Progress


class Stepping(Protocol):
    """A descent that can be taken further."""

    @property
    def rmse(self) -> float:
        """Held-out error where it stands."""
        ...

    def go_on(self, steps: int, told: Callable[[float], None]) -> None:
        """Take steps, at most this many; `told` hears the held-out error after each."""
        ...


def plan_rounds(descents: int, iterations: int, first: int = 1) -> list[tuple[int, int]]:
    """How many descents take how many steps in every round; the last round is that of the one that is left.

    Args:
        descents: Where they begin.
        iterations: Steps of one that takes part in all rounds, at most.
        first: Steps of the first round; every later one has twice as many as the one before it.
    """
    rounds, taken = list[tuple[int, int]](), 0
    while descents > 1 and taken < iterations:
        steps = min(first * 2 ** len(rounds), iterations - taken)
        rounds, taken, descents = [*rounds, (descents, steps)], taken + steps, (descents + 1) // 2
    return [*rounds, (1, iterations - taken)]


def descend(descents: Sequence[Stepping], iterations: int, progress: Progress | None = None, first: int = 1) -> int:
    """Take the best of some descents to its end.

    Args:
        descents: Where they begin; of equal ones the first is the best.
        iterations: Steps of the one that is left, at most, those of the rounds included.
        progress: Called with (step of all, steps of all at most, held-out error).
        first: Steps of the first round; see `plan_rounds`.
    Returns:
        The position of that one.
    """
    rounds = plan_rounds(len(descents), iterations, first)
    done, total = 0, sum(count * steps for count, steps in rounds)

    def told(error: float) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, error)

    field = list(range(len(descents)))
    for count, steps in rounds:
        field = sorted(field, key=lambda position: descents[position].rmse)[:count] if count < len(field) else field
        for position in field:
            descents[position].go_on(steps, told)
    return field[0]
