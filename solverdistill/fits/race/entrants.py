"""Who takes part in a race of starts: a student as every solver that it can begin as, on every grid worth a try."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from solverdistill.families.base import Params
from solverdistill.families.student import Student
from solverdistill.fits.grid_search.search import cheapest_path, jump_costs
from solverdistill.noise.grids import Grid, lower_start
from solverdistill.noise.paths import EDM, Flow, Path
from solverdistill.programs.program import SolverProgram
from solverdistill.references.trajectory import Trajectory

GITS_WEIGHTS = (1.0, 1.15)  # gamma: even, and the paper's for small networks


@dataclass(frozen=True, eq=False)
class Entrant:
    """A start: what it is, the student that begins there, and its params."""

    label: str
    student: Student
    params: Params

    @cached_property
    def program(self) -> SolverProgram:
        """Its table, without gradients."""
        return self.student.family.program(self.params).detach()


def grid_rules(path: Path, start: float, end: float) -> dict[str, Grid]:
    """Rules that are worth a try on a path, between two noise levels in its own unit."""
    base = Grid(steps=1, start=start, end=end)
    rules = {f"polynomial rho {rho:g}": replace(base, kind="polynomial", rho=rho) for rho in (4.0, 5.0, 7.0)}
    rules["uniform"] = replace(base, kind="time_uniform", rho=1.0)
    rules["quadratic"] = replace(base, kind="quadratic")
    rules["logsnr"] = replace(base, kind="logsnr")
    if isinstance(path, Flow):
        rules |= {f"shift {shift:g}": replace(base, kind="flow_shift", shift=shift) for shift in (2.0, 3.0, 5.0)}
    elif isinstance(path, EDM):
        rules["time_uniform rho 3"] = replace(base, kind="time_uniform", rho=3.0)
    return rules


def entrants(
    student: Student,
    reference: Trajectory | None = None,
    starts: bool = True,
    seed: int = 0,
    params: Params | None = None,
) -> Iterator[Entrant]:
    """Everything that the student can start as, given params or else the configured start first.

    What cannot be built is left out.

    Args:
        student: As configured; its grids lie between the ends of its rule, or of its listed levels.
        reference: Fine trajectories for searched grids; None for none.
        starts: Whether the family's other starts take part.
        seed: Seed of the initial params.
        params: Params that the student has already.
    """
    if params is not None:
        yield Entrant("start", student, params)
    first = student.family.init(seed)
    yield Entrant("configured", student, first)
    rule, levels = student.rule, student.family.grid
    ends = (levels[0], levels[-1]) if rule is None else (rule.start, rule.end)
    grids = dict[str, Any](grid_rules(student.family.path, *ends))
    if reference is not None:
        costs, solved = jump_costs(reference), _levels_on(student.family.path, reference)
        for gamma in GITS_WEIGHTS:
            if student.family.steps < len(solved):
                chosen = cheapest_path(costs, student.family.steps, gamma)
                grids[f"GITS gamma {gamma:g}"] = [solved[i] for i in chosen]
    seen = {student.family}
    for options in student.family.starts() if starts else ({},):
        own = " ".join(str(value) for value in options.values() if value is not None)
        for label, grid in grids.items():
            entrant = _entrant(f"{own} on {label}" if own else label, student, grid, options, seed)
            if entrant is not None and entrant.student.family not in seen:
                seen.add(entrant.student.family)
                yield entrant


def _entrant(label: str, student: Student, grid: Any, options: dict[str, Any], seed: int) -> Entrant | None:
    """The student on another grid; None on one that the path, or from a start that the family, does not have."""
    try:
        other = student.elsewhere(grid, options)
        entrant = Entrant(label, other, other.family.init(seed))
        _ = entrant.program  # refuses a table that is not finite
    except ValueError:
        return None
    return entrant


def _levels_on(path: Path, reference: Trajectory) -> list[float]:
    """Noise levels of the states of a reference, in the unit of a path, by their signal-to-noise ratios."""
    levels = reference.path.from_clock(reference.clock)
    return (levels if path == reference.path else path.from_half_log_snr(reference.path.half_log_snr(levels))).tolist()


def from_lower(entrant: Entrant, shifts: Iterable[float], top: float, seed: int = 0) -> Iterator[Entrant]:
    """The same solver on the same rule, begun lower; nothing for listed levels, and for grids that cannot be built.

    Args:
        entrant: A start on the whole range, or one that is begun lower already.
        shifts: What is added to log(alpha / sigma) at its first noise level.
        top: First noise level of the whole range; those that do not begin below it are left out.
        seed: Seed of the initial params.
    """
    student, rule = entrant.student, entrant.student.rule
    for shift in shifts if rule is not None else ():
        assert rule is not None
        try:
            lower = lower_start(rule, student.family.path, shift)
        except ValueError:
            continue
        if lower.start < top and not math.isclose(lower.start, top, rel_tol=1e-9):
            alpha, sigma = student.family.path.level(lower.start)
            label = f"{entrant.label.split(' from ')[0]} from {float(sigma / alpha):.3g}"
            other = _entrant(label, student, lower, {}, seed)
            if other is not None:
                yield other
