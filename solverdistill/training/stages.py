"""The fits of a run, one after the other: each begins where the one before it ended.

    fit=[race,gauss_newton,gradient]

A race changes the student (its grid, the solver that it starts as), the others its params. What a fit does not improve
on held-out samples it leaves alone, so no stage ends worse than the one before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from solverdistill.families.base import Params
from solverdistill.families.student import Student
from solverdistill.fits.batches import on_device
from solverdistill.fits.gauss_newton.fit import GaussNewtonFit, fit_gauss_newton
from solverdistill.fits.gradient.module import FitSettings
from solverdistill.fits.greedy import GreedyFit, check_greedy, fit_greedily
from solverdistill.fits.least_squares.fit import fit_least_squares
from solverdistill.fits.least_squares.row_fits import LeastSquaresFit
from solverdistill.fits.point_search import PointSearchFit, check_points, fit_points, searchable
from solverdistill.fits.race.fit import RaceFit, run_race
from solverdistill.fits.report import FitReport
from solverdistill.references.batch import Batch
from solverdistill.references.datamodule import TargetData

DirectFit = RaceFit | LeastSquaresFit | PointSearchFit | GreedyFit | GaussNewtonFit
AnyFit = DirectFit | FitSettings
log = logging.getLogger(__name__)
RACE_TRAJECTORIES = 64  # training samples that grids are searched on, and rows and points fitted to


@dataclass(frozen=True)
class Standing:
    """Where a run stands between two fits.

    Args:
        student: The student.
        params: Its best params so far; None for the family's own initial ones.
        rmse: Their mean RMSE on the held-out samples; None before it is known.
        last: Params at the end of the last fit, where these are others than the best.
        reports: What the fits so far did and cost.
    """

    student: Student
    params: Params | None = None
    rmse: float | None = None
    last: Params | None = None
    reports: tuple[FitReport, ...] = field(default=())

    def after(self, report: FitReport, params: Params | None, student: Student | None = None) -> Standing:
        """The standing after a fit; params that are not better than those before are dropped."""
        reports, rmse = (*self.reports, report), report.rmse
        if self.rmse is not None and not rmse < self.rmse:
            return replace(self, reports=reports)
        return Standing(student or self.student, params, rmse, None, reports)


def check_fits(fits: Mapping[str, AnyFit], student: Student) -> None:
    """Refuse an order of fits, or a student, that cannot work, before anything is computed.

    Raises:
        ValueError: the race is not first, there are two fits with an optimizer, or a fit does not know the family.
    """
    if not fits:
        raise ValueError("fit is empty; name at least one, for example fit=[race,gauss_newton]")
    if "race" in fits and next(iter(fits)) != "race":
        raise ValueError(f"fit=[{','.join(fits)}]: the race finds where to start, so it has to come first")
    trained = [name for name, fit in fits.items() if isinstance(fit, FitSettings)]
    if len(trained) > 1:
        raise ValueError(f"fit=[{','.join(fits)}] has {len(trained)} fits with an optimizer; keep one of them")
    for fit in fits.values():
        if isinstance(fit, GreedyFit):
            check_greedy(student.family)
        if isinstance(fit, PointSearchFit) and len(fits) == 1:
            check_points(student.family)
        if isinstance(fit, LeastSquaresFit) and len(fits) == 1 and not student.family.linear_params:
            raise ValueError(f"fit=least_squares has nothing to fit in {student.family.name}; take fit=gauss_newton")


def needs_trajectories(fits: Mapping[str, AnyFit]) -> bool:
    """Whether a fit reads whole reference trajectories, or moves the student's grid away from stored states."""
    return any(isinstance(fit, RaceFit | LeastSquaresFit | PointSearchFit | GreedyFit) for fit in fits.values())


def run_direct(
    fit: DirectFit,
    standing: Standing,
    denoiser: Any,
    data: TargetData,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> Standing:
    """Run a fit without an optimizer; processes of one run share its work and end at the same params.

    Args:
        fit: Its settings.
        standing: Where to begin.
        denoiser: The teacher, possibly guided, on the device of the data.
        data: The run's targets.
        seed: Seed of initial params and of samples drawn.
        progress: Called with (iteration, iterations, held-out error).
    """
    student, family = standing.student, standing.student.family
    train, held_out = (on_device(data.split(name).batch, data.device) for name in ("train", "validation"))
    if isinstance(fit, RaceFit):
        few = _trajectories(data, RACE_TRAJECTORIES)
        winner, params, report = run_race(student, denoiser, held_out, few, fit, seed)
        return standing.after(report, params, winner)
    start = standing.params
    if isinstance(fit, GaussNewtonFit):
        settings = replace(fit, seed=seed)
        params, report = fit_gauss_newton(family, denoiser, train, held_out, settings, start, progress, standing.rmse)
    elif isinstance(fit, LeastSquaresFit):
        if not family.linear_params:
            log.info("least_squares: nothing of %s is linear in its params; left out", family.name)
            return standing
        train = _trajectories(data, fit.samples)
        params, report = fit_least_squares(family, denoiser, train, held_out, fit, start)
    elif isinstance(fit, PointSearchFit):
        if not searchable(family):
            log.info("point_search: %s has no points to search; left out", family.name)
            return standing
        params, report = fit_points(family, denoiser, _trajectories(data, fit.samples), held_out, fit, start)
    else:
        params, report = fit_greedily(family, denoiser, _trajectories(data, fit.samples), held_out)
    return standing.after(report, params)


def _trajectories(data: TargetData, count: int) -> Batch:
    """The first training samples with their whole trajectories, on the network's device."""
    train = data.split("train")
    batch = train.take(torch.arange(min(count, len(train))))
    reference = None if batch.reference is None else batch.reference.to(data.device)
    return on_device(batch, data.device)._replace(reference=reference)
