"""Race of starts: where a fit should begin, found by a few dozen end points each before anything is trained.

A student's error before training depends on its grid, and on the solver that it starts as, by factors; a fit that
begins at the best one needs fewer iterations and ends lower (docs/benchmarks/fits.md). Everything that a family can
start as (`Family.starts`) races on every grid of `GRIDS`, on the grid that it is configured with, and on the grids that
dynamic programming finds for Euler jumps along the reference (`solverdistill.search.gits`, no network calls).

Successive halving on common noise: all start on a few samples, the best go on with more, and the winner runs against
the configured start on all.

What a fit repairs is a poor solver, not a poor grid, so the error at the start ranks the grids badly. Where rows of a
student are linear in its params (`Family.linear_params`), and where it has parallel points (`epd`), the best start of
every grid therefore goes on as what `fits.row_fits` or `fits.point_search` makes of it on a few samples.
Reference: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from solverdistill.families.base import Family, Params
from solverdistill.fits.batches import mean_error, take, take_solved
from solverdistill.fits.point_search import PointSearchFit, search_points, searchable
from solverdistill.fits.report import FitReport, Meter, Point
from solverdistill.fits.row_fits import LeastSquaresFit, fit_rows
from solverdistill.grids import Grid
from solverdistill.noise import EDM, Flow, Path
from solverdistill.objectives import Batch
from solverdistill.processes import share
from solverdistill.search import cheapest_path, jump_costs
from solverdistill.settings import check_fields
from solverdistill.students import Student
from solverdistill.trajectories import Trajectory

FACTOR = 4  # samples of the second round, of those of the first
RIDGE = 1e-6  # of least squares on a few samples
GITS_WEIGHTS = (1.0, 1.15)  # gamma: even, and the paper's for small networks


@dataclass(frozen=True)
class RaceFit:
    """Settings of the race.

    Args:
        first: Samples of the first round, in which all take part.
        survivors: Starts, or best starts of a grid, that go on to the second round, with four times as many samples;
            the best of them runs against the configured start on all held-out samples.
        starts: Let the family start as every solver that it can, not as the configured one alone.
        gits: Take part with searched grids too.
        least_squares: Compare what least squares of rows, or a point search, makes of the starts in the second round,
            where one of them can.
        batch_size: Samples that go through the network at once.
    """

    first: int = 4
    survivors: int = 8
    starts: bool = True
    gits: bool = True
    least_squares: bool = True
    batch_size: int = 64
    iterations: ClassVar[int] = 1
    interval: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("first", "survivors", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit.race.{name} must be at least 1, not {getattr(self, name)}")


class Entrant(NamedTuple):
    """A start: what it is, the student that begins there, and its params."""

    label: str
    student: Student
    params: Params


class Placed(NamedTuple):
    """An entrant and its mean RMSE in the last round that it took part in."""

    entrant: Entrant
    rmse: float


def grid_rules(path: Path, rule: Grid | None, noise_range: tuple[float, float]) -> dict[str, Grid]:
    """Rules that are worth a try on a path, between the ends of the configured rule."""
    start, end = noise_range if rule is None else (rule.start, rule.end)
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
    noise_range: tuple[float, float],
    reference: Trajectory | None = None,
    starts: bool = True,
    seed: int = 0,
) -> Iterator[Entrant]:
    """Everything that the student can start as, the configured start first; what cannot be built is left out.

    Args:
        student: As configured.
        noise_range: Ends of the grids of a student whose levels were listed.
        reference: Fine trajectories for searched grids; None for none.
        starts: Whether the family's other starts take part.
        seed: Seed of the initial params.
    """
    first = student.family.init(seed)
    yield Entrant("configured", student, first)
    grids = dict[str, Any](grid_rules(student.family.path, student.rule, noise_range))
    if reference is not None:
        costs, levels = jump_costs(reference), reference.path.from_clock(reference.clock).tolist()
        for gamma in GITS_WEIGHTS:
            if student.family.steps < len(levels):
                chosen = cheapest_path(costs, student.family.steps, gamma)
                grids[f"GITS gamma {gamma:g}"] = [levels[i] for i in chosen]
    seen = {student.family}
    for options in student.family.starts() if starts else ({},):
        own = " ".join(str(value) for value in options.values() if value is not None)
        for label, grid in grids.items():
            try:
                other = student.elsewhere(grid, options)
                other.family.program(other.family.init(seed))
            except ValueError:
                continue  # a grid that the path, or a start that the family, does not have
            if other.family not in seen:
                seen.add(other.family)
                yield Entrant(f"{own} on {label}" if own else label, other, other.family.init(seed))


@torch.no_grad()
def run_race(
    student: Student,
    denoiser: Any,
    held_out: Batch,
    noise_range: tuple[float, float],
    train: Batch | None = None,
    settings: RaceFit | None = None,
    seed: int = 0,
) -> tuple[Student, Params, FitReport]:
    """Find the start with the smallest mean RMSE of the end points; of equal ones the first, the configured one.

    Args:
        student: As configured.
        denoiser: The teacher, possibly guided, on the device of the samples.
        held_out: Samples to race on; the same in all processes, which share the work.
        noise_range: The teacher's.
        train: Some training samples with their trajectories, for searched grids, least squares and point search; None
            leaves these out.
        settings: Sizes of the rounds.
        seed: Seed of the initial params.
    Returns:
        The student, the params of its start, and the report: the errors of the configured start and of the winner.
    """
    settings, meter = settings or RaceFit(), Meter(held_out.noise.device)
    samples, more = held_out.noise.shape[0], FACTOR * settings.first
    reference = train.reference if train is not None and settings.gits else None
    field = list(entrants(student, noise_range, reference, settings.starts, seed))
    configured, begun = field[0], len(field)

    def place(field: Iterable[Entrant], wanted: int) -> list[Placed]:
        batch, placed = take(held_out, torch.arange(min(wanted, samples))), list[Placed]()
        for entrant in field:
            program = entrant.student.family.program(entrant.params).detach()
            placed.append(Placed(entrant, mean_error(program, denoiser, batch, settings.batch_size, meter)))
        return sorted(placed, key=lambda one: one.rmse)

    field = [placed.entrant for placed in place(field, settings.first)]
    if train is not None and settings.least_squares and _fittable(student.family):
        best = _best_of_grids(field)[: settings.survivors]
        field = [best[0], *(_fitted(entrant, denoiser, train, more, settings.batch_size, meter) for entrant in best)]
    else:
        field = field[: settings.survivors]
    second = place(field, more)
    final = place([configured] if second[0].entrant is configured else [configured, second[0].entrant], samples)
    start = next(placed.rmse for placed in final if placed.entrant is configured)
    history = [Point(start, 0, 0.0), Point(final[0].rmse, meter.evaluations, meter.seconds)]
    winner = final[0].entrant
    ranks, on = (second, min(more, samples)) if winner is second[0].entrant else (final, samples)
    note = f"{winner.label} won over {begun - 1} others"
    if len(ranks) > 1:
        note += f"; on {on} samples {ranks[0].rmse:.4f}, next {ranks[1].entrant.label} with {ranks[1].rmse:.4f}"
    return winner.student, winner.params, FitReport.of("race", history, meter, "all rounds done", note)


def _best_of_grids(field: list[Entrant]) -> list[Entrant]:
    """The first entrant of every grid in a sorted field."""
    best: dict[tuple[float, ...], Entrant] = {}
    for entrant in field:
        best.setdefault(entrant.student.family.grid, entrant)
    return list(best.values())


def _fittable(family: Family) -> bool:
    """Whether starts of a student can be fitted without derivatives."""
    return bool(family.linear_params) or searchable(family)


def _fitted(entrant: Entrant, denoiser: Any, train: Batch, samples: int, batch_size: int, meter: Meter) -> Entrant:
    """An entrant after a fit to a few samples; a search of points needs half of them."""
    family = entrant.student.family
    if searchable(family):
        search = PointSearchFit(max(1, samples // 2), batch_size)
        params = search_points(family, denoiser, train, entrant.params, search, meter)
        return entrant._replace(params=params, label=f"{entrant.label} + point search")
    few = take_solved(train, share(torch.arange(min(samples, train.noise.shape[0]))))
    settings = LeastSquaresFit(ridge=RIDGE, batch_size=batch_size)
    params, _ = fit_rows(family, denoiser, few, settings, entrant.params, meter=meter)
    return entrant._replace(params=params, label=f"{entrant.label} + least squares")
