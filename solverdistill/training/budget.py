"""`budget=20min`, `budget=2000evals`: a run that plans itself so as to cost no more.

A budget is counted in forward equivalents of the whole run: references, fits and the comparison at the end. A time is
turned into them by timing a few calls of the network. What was set by hand stays as it is; the plan fills in the rest,

    a rung    the largest of `RUNGS` that the budget pays for: shares of references and race, families, derivatives
    samples   as many references as their share pays for, a fifth of them held out, up to those of a run without one
    race      the largest of `RACES` that its share pays for
    descent   Gauss-Newton with what is left; on the smallest rung least squares of rows in its place, without gradients

and is printed and kept in the solver's file. The rungs follow what was measured (docs/benchmarks/default.md).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

from solverdistill.fits.gauss_newton.fit import GaussNewtonFit
from solverdistill.fits.least_squares.fit import LeastSquaresFit
from solverdistill.fits.placements import PlacementFit
from solverdistill.fits.protocol import Fit
from solverdistill.fits.race.fit import RaceFit
from solverdistill.fits.registry import FITS
from solverdistill.references.targets import Progress, TargetSettings
from solverdistill.support.processes import count, processes, total
from solverdistill.training.configuration import Run
from solverdistill.training.costs import time_network

log = logging.getLogger(__name__)
UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
WRITTEN = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(evals|evaluations|s|sec|min|h)\s*$")
SPARE = 0.8  # of a time, for what is no evaluation of the network
COMPARISON = 0.1  # of a budget, at most
HELD_OUT = 0.2  # of the references
FEWEST = 4  # samples of a step
FEWEST_STEPS = 12  # of a reference that is not measured
CHUNK = 8  # references solved at once where they are few
CLOSED = 64  # of least squares in the place of a descent
HOW = {"batch_size", "checkpointing", "directions"}  # settings of a descent that say how it runs and not how far
MANY = 512  # samples of a step that takes all
STEPS = 8  # of a descent, rather than larger batches
PATIENCE = 6  # with small batches
RIDGE = 1e-4  # of least squares on few samples
RACE_SIZES = ("first", "survivors", "gits", "lower_starts")
SHORTEST = {"iterations": 2, "final_iterations": 4, "placements": 2, "samples": 8}
PLANNED = ("train_samples", "validation_samples", "chunk", "reference")


@dataclass(frozen=True)
class Budget:
    """What a whole run may cost.

    Args:
        text: As it was written.
        evaluations: Forward equivalents; None where a time was given.
        seconds: Wall time; None where evaluations were given.
    """

    text: str
    evaluations: int | None = None
    seconds: float | None = None

    @classmethod
    def read(cls, text: Any) -> Budget:
        """Read "20min", "90s", "2h" or "2000evals".

        Raises:
            ValueError: it is none of these, or nothing can be had for it.
        """
        found = WRITTEN.match(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"budget={text} is no budget; write 2000evals, 90s, 20min or 2h, or null for none")
        amount, unit = float(found[1]), found[2]
        if amount <= 0:
            raise ValueError(f"budget={text} pays for nothing; write 2000evals, 90s, 20min or 2h, or null for none")
        return cls(text, None, amount * UNITS[unit]) if unit in UNITS else cls(text, round(amount))


@dataclass(frozen=True)
class Rung:
    """How a budget from a size on is shared out.

    Args:
        least: Evaluations from which it holds.
        references: Share of the references.
        race: Share of the race, at most.
        families: Families that `solver=auto` chooses among, at most.
        derivatives: Whether there is a descent; else closed forms.
        measured: Whether the reference measures itself; else a rule fixes it, see `with_reference`.
    """

    least: int
    references: float
    race: float
    families: int
    derivatives: bool
    measured: bool


RUNGS = (
    Rung(60_000, 0.3, 0.2, 3, True, True),
    Rung(20_000, 0.3, 0.2, 2, True, True),
    Rung(8_000, 0.25, 0.2, 1, True, False),
    Rung(2_000, 0.25, 0.27, 1, True, False),
    Rung(0, 0.4, 0.45, 1, False, False),
)
RACES = (
    RaceFit(),
    RaceFit(first=2, survivors=3),
    RaceFit(first=2, survivors=2, gits=False),
    RaceFit(first=1, survivors=2, gits=False),
    RaceFit(first=1, survivors=1, gits=False),
    RaceFit(first=1, survivors=1, gits=False, lower_starts=False),
)


def within(
    run: Run,
    budget: Budget,
    stated: Collection[str],
    device: torch.device | str,
    progress: Progress | None = None,
    comparison: bool = False,
) -> Run:
    """A run that costs no more than a budget.

    Args:
        run: As configured.
        budget: What it may cost.
        stated: Settings that were given by hand, with their groups: "targets.train_samples", "fit.race.first".
        device: Where the network runs.
        progress: Of measuring the reference.
        comparison: Keep a tenth for the comparison at the end.
    Raises:
        ValueError: what was set by hand costs more.
    """
    most = evaluations_of(run, budget, device)
    rung = next(rung for rung in RUNGS if most >= rung.least)
    if not any(fit.differentiates for fit in run.fits.values()):
        rung = replace(rung, references=0.4, race=0.4, derivatives=False)
    run = replace(run, rivals=run.rivals[: rung.families - 1])
    run = with_reference(run, most, rung, device, progress)
    run = replace(run, targets=plan_targets(run, round(rung.references * most), stated))
    left = most - references_of(run) - round(COMPARISON * most * comparison)
    fits = plan_fits(run, left, round(rung.race * most), rung, stated)
    run = replace(run, fits=fits)
    references, work = references_of(run), sum(fit.expected(run.plan(None)) for fit in fits.values())
    if references + work > most:
        samples = f"{run.targets.train_samples} training and {run.targets.validation_samples} held-out samples"
        raise ValueError(
            f"budget={budget.text} pays for {most:,} evaluations, and the run takes {references + work:,} at least: "
            f"{references:,} for {samples}, {work:,} for fit=[{','.join(fits)}]; raise the budget, or leave "
            "settings out"
        )
    return replace(run, config=recorded(run, most))


def evaluations_of(run: Run, budget: Budget, device: torch.device | str) -> int:
    """Forward equivalents of a budget; the same in every process."""
    if budget.evaluations is not None:
        return budget.evaluations
    assert budget.seconds is not None
    speed = time_network(run, device, run.targets.chunk, any(fit.differentiates for fit in run.fits.values()))
    number = SPARE * budget.seconds / max(speed.forward, speed.derivative, 1e-9) * count()
    first = torch.tensor([number if processes()[0] == 0 else 0.0], dtype=torch.float64)
    return max(1, int(total(first)[0]))


def with_reference(run: Run, most: int, rung: Rung, device: torch.device | str, progress: Progress | None) -> Run:
    """What is open of the reference is measured, or where few evaluations can be paid fixed by a rule."""
    settings = run.targets
    if not settings.measure:
        return run
    if rung.measured:
        choice = run.choose(run.student, device, progress, most)
        return replace(run, targets=replace(settings, reference=choice.reference, measure=()), choice=choice)
    rule = {"grid": "quadratic", "steps": max(FEWEST_STEPS, 3 * run.student.family.depth)}
    known = replace(settings.reference, **{name: rule[name] for name in settings.measure})
    return replace(run, targets=replace(settings, reference=known, measure=()))


def references_of(run: Run) -> int:
    """Evaluations that the references take, with what it took to choose them."""
    samples = run.targets.train_samples + run.targets.validation_samples
    return samples * per_reference(run) + (0 if run.choice is None else run.choice.evaluations)


def per_reference(run: Run) -> int:
    """Evaluations of one reference."""
    return run.targets.reference.evaluations(run.teacher.path, run.teacher.noise_range, run.student.rule)


def plan_targets(run: Run, most: int, stated: Collection[str]) -> TargetSettings:
    """As many references as a number of evaluations pays for, in whole chunks where there are several."""
    settings, chosen = run.targets, 0 if run.choice is None else run.choice.evaluations
    samples = max(0, most - chosen) // per_reference(run)
    if samples < 4 * settings.chunk and "targets.chunk" not in stated:
        settings = replace(settings, chunk=max(1, min(CHUNK, settings.chunk, samples // 4)))
    train, held_out = settings.train_samples, settings.validation_samples

    def whole(number: int, limit: int) -> int:
        return min(max(settings.chunk, number // settings.chunk * settings.chunk), limit)

    if "targets.validation_samples" not in stated:
        held_out = whole(round(HELD_OUT * samples), held_out)
    if "targets.train_samples" not in stated:
        train = whole(samples - held_out, train)
    return replace(settings, train_samples=train, validation_samples=held_out)


def plan_fits(run: Run, most: int, of_race: int, rung: Rung, stated: Collection[str]) -> dict[str, Fit]:
    """The configured fits, made to take no more than a number of evaluations together."""
    fits, waiting = dict[str, Fit](), len(run.fits)
    for name, fit in run.fits.items():
        own = {key.split(".")[2] for key in stated if key.startswith(f"fit.{name}.")}

        def cost(tried: Fit, name: str = name) -> int:
            return tried.expected(replace(run, fits={**fits, name: tried}).plan(None))

        share = of_race if isinstance(fit, RaceFit) else most // waiting
        found = largest(sizes(fit, own, share, cost), cost, share)
        waiting -= 1
        if isinstance(fit, GaussNewtonFit) and own <= HOW and (not rung.derivatives or cost(found) > share):
            name = "least_squares"
            few = descending(min(CLOSED, run.targets.train_samples), 2 * FEWEST)
            found = largest((LeastSquaresFit(samples=samples, ridge=RIDGE) for samples in few), cost, share)
            if fits and cost(found, name) > share:
                continue
        elif isinstance(found, PlacementFit) and "fit" not in stated and fits and cost(found) > share:
            log.warning("points beside the evaluations are not tried: the budget does not pay for it")
            continue
        fits[name] = found
        most -= cost(found, name)
    return fits


def largest(found: Iterator[Fit], cost: Callable[[Fit], int], most: int) -> Fit:
    """The first that takes no more than a number of evaluations; the last where all take more."""
    fit = None
    for fit in found:
        if cost(fit) <= most:
            break
    assert fit is not None
    return fit


def sizes(fit: Any, stated: Collection[str], most: int, cost: Callable[[Fit], int]) -> Iterator[Fit]:
    """A fit at smaller and smaller sizes; what was set by hand is kept."""
    if isinstance(fit, RaceFit):
        smaller = ({name: getattr(race, name) for name in RACE_SIZES} for race in RACES)
        yield from (replace(fit, **{k: v for k, v in race.items() if k not in stated}) for race in smaller)
    elif isinstance(fit, GaussNewtonFit) and "evaluations" not in stated:
        yield from descents(fit, stated, most, cost)
    elif isinstance(fit, LeastSquaresFit) and fit.ridge is None and "ridge" not in stated:
        many = [samples for samples in descending(fit.samples, CLOSED) if "samples" not in stated]
        yield from (replace(fit, samples=samples) for samples in many or [fit.samples])
        yield from shorter(replace(fit, ridge=RIDGE, samples=(many or [fit.samples])[-1]), stated)
    else:
        yield from shorter(fit, stated)


def descents(fit: GaussNewtonFit, stated: Collection[str], most: int, cost: Callable[[Fit], int]) -> Iterator[Fit]:
    """Gauss-Newton for a number of evaluations, on the largest batches that leave some steps."""
    for samples in descending(fit.samples or MANY, 2 * FEWEST):
        few: dict[str, Any] = {} if samples >= 64 else {"tries": 2, "patience": PATIENCE}
        tried = replace(fit, **{k: v for k, v in few.items() if k not in stated}, samples=samples)
        one = cost(replace(tried, iterations=1))
        if STEPS * one <= most or samples == 2 * FEWEST:
            yield replace(tried, evaluations=max(1, most - one))


def shorter(fit: Any, stated: Collection[str]) -> Iterator[Fit]:
    """Any other fit as it is configured, and half as long, and half of that."""
    yield fit
    lengths = [name for name in SHORTEST if getattr(fit, name, None) is not None and name not in stated]
    while any(getattr(fit, name) > SHORTEST[name] for name in lengths):
        fit = replace(fit, **{name: max(SHORTEST[name], getattr(fit, name) // 2) for name in lengths})
        yield fit


def descending(most: int, least: int) -> Iterator[int]:
    """Halves of a number, down to another one."""
    while most > least:
        yield most
        most //= 2
    yield least


def recorded(run: Run, most: int) -> dict[str, Any]:
    """The configuration with what was planned."""
    settings = asdict(run.targets)
    targets = {**run.config["targets"], **{name: settings[name] for name in PLANNED}}
    kinds = {fit: name for name, fit in FITS.items()}
    fits = {
        name: {"kind": kinds[f"{type(fit).__module__}.{type(fit).__name__}".removeprefix("solverdistill.fits.")]}
        | asdict(cast(Any, fit))
        for name, fit in run.fits.items()
    }
    return {**run.config, "targets": targets, "fit": fits, "planned_evaluations": most}
