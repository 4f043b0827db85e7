"""How many steps a family takes to cost what is wanted, found from a few tables.

A table of n evaluations holds n^2 numbers, so trying every number of steps up to the right one makes n^3 of them. Costs
grow evenly with the steps, or nearly so, and two that are known say where the wanted one is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from solverdistill.support.type_checks import check_range

MOST_EVALUATIONS = 256  # of a student; teachers are solved exactly in fewer
LONGEST_GAP = 4  # numbers of steps in a row that a family may be unable to take, above the fewest that it can


def check_cost(name: str, value: Any) -> int:
    """A number of evaluations, or of sequential calls, of a student; what is none is refused.

    Raises:
        TypeError, ValueError: it is no integer, or out of range; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer of at least 1, not {value!r}")
    check_range(name, value, least=1, most=MOST_EVALUATIONS)
    return value


def find_steps(cost: Callable[[int], int | None], wanted: int, most: int) -> tuple[int | None, set[int]]:
    """The fewest steps of a cost.

    Args:
        cost: Cost of a number of steps, which falls nowhere; None for a number that cannot be built.
        wanted: The cost that is sought.
        most: Largest number of steps.
    Returns:
        The steps, None where none cost this; and the costs that were met, the nearest on both sides among them.
    """
    known: dict[int, int] = {}

    def look(first: int, stop: int) -> int | None:
        """The first number of steps in a range that can be built."""
        for steps in range(first, stop):
            value = known[steps] if steps in known else cost(steps)
            if value is not None:
                known[steps] = value
                return steps
        return None

    too_few, too_many, guess, stop = 0, most + 1, 1, most + 1
    while too_few + 1 < too_many:
        found = look(guess, stop)
        if found is not None and known[found] == wanted:
            while look(found - 1, found) and known[found - 1] == wanted:
                found -= 1
            return found, set(known.values())
        if found is None or known[found] > wanted:
            too_many = guess
        else:
            too_few = found
        guess = min(max(_expected(known, wanted), too_few + 1), too_many - 1)
        stop = min(guess + LONGEST_GAP, too_many)
    return None, set(known.values())


def _expected(known: dict[int, int], wanted: int) -> int:
    """Steps at which the line through the two costs that are nearest to the wanted one reaches it."""
    nearest = sorted(sorted(known, key=lambda steps: abs(known[steps] - wanted))[:2])
    if len(nearest) < 2:
        return 0
    (first, second), rise = nearest, known[nearest[1]] - known[nearest[0]]
    return second + round((wanted - known[second]) * (second - first) / rise) if rise > 0 else second + 1
