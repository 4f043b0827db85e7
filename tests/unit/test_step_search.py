"""How many steps cost what is wanted, and how few tables it takes to find out."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from solverdistill import families
from solverdistill.families.learned.bns import BNS
from solverdistill.families.learned.gas import GAS
from solverdistill.families.step_search import find_steps
from solverdistill.noise.grids import Grid

Cost = Callable[[int], int | None]
COSTS: dict[str, Cost] = {
    "one of each step": lambda steps: steps,
    "three, and one less": lambda steps: 3 * steps - 1,
    "pairs of steps": lambda steps: None if steps % 2 else steps,
    "four at a time from eight on": lambda steps: 2 * steps if steps >= 8 and steps % 4 == 0 else None,
    "two steps for one": lambda steps: (steps + 1) // 2,
    "the same": lambda steps: 7,
    "none": lambda steps: None,
    "not above twenty": lambda steps: steps if steps <= 20 else None,
    "dear from ten on": lambda steps: steps + 5 * (steps > 10),
}


@pytest.mark.parametrize("name", COSTS)
def test_the_fewest_steps_of_a_cost_are_found(name: str) -> None:
    cost = COSTS[name]
    for wanted in range(1, 60):
        most = wanted + 1
        exact = [steps for steps in range(1, most + 1) if cost(steps) == wanted]
        found, reached = find_steps(cost, wanted, most)
        assert found == (exact[0] if exact else None)
        if not exact:  # the nearest costs on both sides are known
            known = [value for value in map(cost, range(1, most + 1)) if value is not None]
            assert {max((n for n in known if n < wanted), default=None)} <= {None, *reached}
            assert {min((n for n in known if n > wanted), default=None)} <= {None, *reached}


def test_a_hundred_evaluations_take_few_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []
    for cls in (GAS, BNS):
        original = cls.program

        def program(self: families.registry.Family, params=None, original=original):  # type: ignore[no-untyped-def]
            traced.append(self.steps)
            return original(self, params)

        monkeypatch.setattr(cls, "program", program)
        traced.clear()
        assert families.build_for_nfe(cls.name, 100, Grid()).steps == 100
        assert traced == [1, 2, 100, 99]


@pytest.mark.parametrize("name", [name for name in families.ROSTER if name not in ("table", "parallel")])
def test_a_hundred_evaluations_are_built_in_no_time(name: str) -> None:
    """CPU seconds, with room for a slow machine: the slowest family takes about a quarter of one."""
    began = time.process_time()
    nfe = 102 if name.startswith("epd") or name.endswith("3s") else 100
    assert families.build_for_nfe(name, nfe, Grid()).nfe == nfe
    assert time.process_time() - began < 2
