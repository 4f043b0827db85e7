"""Race of starts: where a fit should begin, found by a few dozen end points each before anything is trained.

A student's error before training depends on its grid, and on the solver that it starts as, by factors; a fit that
begins at the best one needs fewer iterations and ends lower (docs/benchmarks/fits.md). Everything that a family can
start as (`Family.starts`) races on every grid of `GRIDS`, on the grid that it is configured with, and on the grids that
dynamic programming finds for Euler jumps along the reference (`solverdistill.search.gits`, no network calls).

Successive halving on common noise: all start on a few samples, the best go on with more, the last two run on all.

Where rows of a student are linear in its params (`Family.linear_params`), the error at the start ranks the grids badly:
a fit of the rows makes up for a poor solver, not for a poor grid. The best start of every grid then goes on as what
`fits.least_squares` makes of it on a few samples.
Reference: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from solverdistill.families.base import Params
from solverdistill.fits.least_squares import fit_least_squares
from solverdistill.fits.normal_equations import play_batches, take
from solverdistill.fits.report import FitReport, Meter, Point
from solverdistill.fits.row_fits import LeastSquaresFit
from solverdistill.grids import Grid
from solverdistill.noise import EDM, Flow, Path
from solverdistill.objectives import Batch
from solverdistill.processes import count, share, total
from solverdistill.search import cheapest_path, jump_costs
from solverdistill.settings import check_fields
from solverdistill.students import Student
from solverdistill.trajectories import Trajectory, rmse

RIDGE = 1e-6  # of a fit on a few samples
GITS_WEIGHTS = (1.0, 1.15)  # gamma: even, and the paper's for small networks


@dataclass(frozen=True)
class RaceFit:
    """Settings of the race.

    Args:
        first: Samples of the first round, in which all take part.
        survivors: Starts, or best starts of a grid, that go on to the second round, with four times as many samples;
            the best two of them run on all held-out samples.
        starts: Let the family start as every solver that it can, not as the configured one alone.
        gits: Take part with searched grids too.
        least_squares: Compare what a row-by-row fit makes of the starts in the second round, where it can.
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
    rules = {f"polynomial rho {rho:g}": replace(base, kind="polynomial", rho=rho) for rho in (5.0, 7.0)}
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
        train: Some training samples with their trajectories, for searched grids and least squares; None leaves these
            out.
        settings: Sizes of the rounds.
        seed: Seed of the initial params.
    Returns:
        The student, the params of its start, and the report: the errors of the configured start and of the winner.
    """
    settings, meter = settings or RaceFit(), Meter(held_out.noise.device)
    samples = held_out.noise.shape[0]
    reference = train.reference if train is not None and settings.gits else None
    field = list(entrants(student, noise_range, reference, settings.starts, seed))
    configured, begun = field[0], len(field)

    def place(field: list[Entrant], wanted: int) -> list[Placed]:
        batch = take(held_out, torch.arange(min(wanted, samples)))
        errors = [_error(entrant, denoiser, batch, settings.batch_size, meter) for entrant in field]
        placed = [Placed(entrant, error) for entrant, error in zip(field, errors, strict=True)]
        return sorted(placed, key=lambda one: one.rmse)

    field = [placed.entrant for placed in place(field, settings.first)]
    if train is not None and settings.least_squares and student.family.linear_params:
        best = _best_of_grids(field)[: settings.survivors]
        field = [_fit(entrant, denoiser, train, held_out, 4 * settings.first, settings, meter) for entrant in best]
    field = [placed.entrant for placed in place(field[: settings.survivors], 4 * settings.first)[:2]]
    final = place([configured, *(entrant for entrant in field if entrant is not configured)], samples)
    start = next(placed.rmse for placed in final if placed.entrant is configured)
    winner, second = final[0], final[min(1, len(final) - 1)]
    history = [Point(start, 0, 0.0), Point(winner.rmse, meter.evaluations, meter.seconds)]
    note = f"{winner.entrant.label} won over {begun - 1} others"
    if second is not winner:
        note += f", next {second.entrant.label} with {second.rmse:.4f}"
    report = FitReport.of("race", history, meter, "all rounds done", note)
    return winner.entrant.student, winner.entrant.params, report


def _best_of_grids(field: list[Entrant]) -> list[Entrant]:
    """The first entrant of every grid in a sorted field."""
    best: dict[tuple[float, ...], Entrant] = {}
    for entrant in field:
        best.setdefault(entrant.student.family.grid, entrant)
    return list(best.values())


def _fit(
    entrant: Entrant, denoiser: Any, train: Batch, held_out: Batch, samples: int, settings: RaceFit, meter: Meter
) -> Entrant:
    """An entrant whose rows were fitted to a few samples."""
    few = take(held_out, torch.arange(min(samples, held_out.noise.shape[0])))
    fit = LeastSquaresFit(samples=samples, ridge=RIDGE, batch_size=settings.batch_size)
    params, report = fit_least_squares(entrant.student.family, denoiser, train, few, fit, entrant.params)
    for kind, cost in report.spent.items():
        meter.add(kind, cost.evaluations / count(), cost.seconds)
    return entrant._replace(params=params, label=f"{entrant.label}, least squares,")


def _error(entrant: Entrant, denoiser: Any, batch: Batch, batch_size: int, meter: Meter) -> float:
    """Mean RMSE of the end points before training; infinite where it is not finite."""
    program, samples = entrant.student.family.program(entrant.params).detach(), batch.noise.shape[0]
    own = take(batch, share(torch.arange(samples)))
    with meter.measure("forward", own.noise.shape[0] * program.nfe):
        ends = play_batches(program, denoiser, own, batch_size) if len(own.noise) else own.end
        error = float(total(rmse(ends, own.end).double().sum().cpu())) / samples
    return error if error < float("inf") else float("inf")
