"""Least squares: every row of a student's table from one small linear problem, without gradients of the network.

With the noise levels fixed, each row of many students is affine in some params (`Family.linear_params`), once the rows
before it are given. With R the registers (the noise and the denoised images so far) and T the wanted state::

    minimise  mean |T - (row + delta @ jacobian) R|^2 + ridge |scale delta|^2       over the params of the row
    scale^2 = mean |jacobian R|^2, the size of each column

so that a ridge of 1 weighs a column as much as the data do, and small ones shrink only what denoised images, which are
nearly the same, leave undetermined. A large ridge keeps the params that the fit started from.

========================  ==============================================  =========================================
form                      registers of row k                              wanted state
========================  ==============================================  =========================================
rollout                   the student's own, row after row                the teacher's, from the same noise
teacher_forced            denoised images of the teacher's states         the same
local                     the student's own                               a fine solve of the step from its own state
========================  ==============================================  =========================================

The row of the sample is wanted to be the reference end point. Its fit costs nothing but sums, and alone often takes off
a quarter of the error. "rollout" ends lower than the other two, which do not see the errors that rows before have made.

`row_fits.fit_rows` is one such pass with one ridge. With a ridge of 0 it finds the coefficients of IIA as published
("local"; Zhang et al., ICLR 2024) and those of D-ODE ("rollout"; Kim et al., CVPR 2024).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.fits.batches import take, take_solved
from solverdistill.fits.least_squares.linear_rows import LinearTable, Registers
from solverdistill.fits.least_squares.row_equations import KEEP, Reduce, double
from solverdistill.fits.least_squares.row_fits import RowFit, RowSettings, Walk, begin
from solverdistill.fits.protocol import FitContext, FitPlan, Standing
from solverdistill.fits.report import FitReport, Meter, Point
from solverdistill.noise.levels import float64
from solverdistill.objectives.distances import rmse
from solverdistill.references.batch import Batch
from solverdistill.support.processes import dealt, share, total

RIDGES = (1e-6, 1e-3, 1e-2, 1e-1)  # of the evaluations: each takes a pass through the network
SAMPLE_RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeastSquaresFit(RowSettings):
    """Settings of `fit_least_squares`: those of its passes, of which it makes one per ridge."""

    needs_trajectories: ClassVar[bool] = True
    resumes: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False

    def check(self, plan: FitPlan) -> None:
        """Refuse a student without linear rows, unless other fits can work on it."""
        family = plan.student.family
        if len(plan.fits) == 1 and not family.linear_params:
            raise ValueError(f"fit=least_squares has nothing to fit in {family.name}; take fit=gauss_newton")

    def expected(self, plan: FitPlan) -> int:
        """A pass through all samples for every ridge, and one for none; nothing where no params are linear."""
        family, samples = plan.student.family, dealt(min(self.samples, plan.train_samples))
        if not family.linear_params:
            return 0
        ridges = len(RIDGES) if self.ridge is None else 1
        passes = 1 if self.form == "teacher_forced" else 1 + ridges
        if self.form == "local":
            passes += ridges * self.fine_steps * (2 if self.fine_solver == "heun" else 1)
        return passes * samples * family.nfe + (1 + ridges) * plan.held_out

    def run(self, context: FitContext) -> Standing:
        """Fit the linear params of the standing, where there are any."""
        before, denoiser = context.standing, context.plan.denoiser
        family = before.student.family
        if not family.linear_params:
            log.info("least_squares: nothing of %s is linear in its params; left out", family.name)
            return before
        train, held_out = context.trajectories(self.samples), context.samples("validation")
        params, report = fit_least_squares(family, denoiser, train, held_out, self, before.params)
        return before.after(report, params)


@torch.no_grad()
def fit_least_squares(
    family: Family,
    denoiser: Any,
    train: Batch,
    held_out: Batch,
    settings: LeastSquaresFit | None = None,
    start: Params | None = None,
    reduce: Reduce = total,
) -> tuple[Params, FitReport]:
    """Fit a student's linear params to reference trajectories, row by row; see the module for the equations.

    The rows of the evaluations are first left as they are, then fitted with one ridge after the other, from small ones
    on until the error rises ("teacher_forced": with all); each time the row of the sample is fitted to the end points
    with several ridges, or left. The network runs through the training samples once per ridge, or once in all if form
    is "teacher_forced", and once per ridge through the held-out samples, whose mean RMSE chooses. What is returned is
    never worse on these than the start.

    Args:
        family: The student; one with `linear_params`. Its other params stay as in `start`.
        denoiser: The teacher, possibly guided.
        train: Samples to fit, with whole reference trajectories unless form is "local"; the first `settings.samples`
            are used. The same in all processes, as `held_out`.
        held_out: Samples with end points that choose the params.
        settings: Settings of the fit.
        start: Where to start; None for the family's initial params.
        reduce: Sums a tensor over processes, which take their shares of the samples and so all find the same.
    Returns:
        The best params, and the report.
    Raises:
        ValueError: the family has no linear params, or the batch no trajectories.
    """
    settings = settings or LeastSquaresFit()
    batch = take_solved(train, share(torch.arange(min(settings.samples, train.noise.shape[0]))))
    held_out = take(held_out, share(torch.arange(held_out.noise.shape[0])))
    search = _Search(denoiser, batch, held_out, settings, reduce)
    return search.run(family, family.init(0) if start is None else start)


class Choice(NamedTuple):
    """Ridges of the evaluations and of the sample, the held-out error they give, and how to come by the params."""

    error: float
    ridges: tuple[float, float]
    table: LinearTable
    entries: Tensor
    step: Tensor
    fits: tuple[RowFit, ...]


class _Search:
    """One run of `fit_least_squares`."""

    def __init__(self, denoiser: Any, train: Batch, held_out: Batch, settings: LeastSquaresFit, reduce: Reduce) -> None:
        self.denoiser, self.train, self.held_out = denoiser, train, held_out
        self.settings, self.reduce, self.meter = settings, reduce, Meter(train.noise.device)

    def run(self, family: Family, start: Params) -> tuple[Params, FitReport]:
        best: Choice | None = None
        history: list[Point] = []
        images: list[Tensor] | None = None
        before = KEEP
        for ridge in (KEEP, *(RIDGES if self.settings.ridge is None else (self.settings.ridge,))):
            table = LinearTable(family, start)
            walk = begin(table, self.denoiser, self.train, self.settings, self.meter, self.reduce, images)
            images = walk.registers.images if self.settings.form == "teacher_forced" else None
            choices = list(self._choices(walk, ridge))
            history = history or [self._point(choices[0].error)]
            found = min(choices, key=lambda choice: choice.error)
            log.info("least_squares: held-out RMSE %.4g with ridge %g of the evaluations", found.error, ridge)
            if best is None or found.error < best.error:
                best = found
            history.append(self._point(best.error))
            if ridge != KEEP and images is None:
                if found.error > before:  # larger ones lead back to the start, at the price of a pass each
                    break
                before = found.error
        assert best is not None
        best.table.move(best.entries, best.step)
        for fit in best.fits:
            log.debug("least_squares: row %d, mean square %.3g -> %.3g", *fit)
        note = "ridge {:g} of the evaluations, {:g} of the sample".format(*best.ridges)
        return best.table.params, FitReport.of("least_squares", history, self.meter, "all ridges tried", note)

    def _choices(self, walk: Walk, ridge: float) -> Iterator[Choice]:
        """Fit the rows of the evaluations with one ridge; leave that of the sample, then fit it with each."""
        table = walk.table
        walk.evaluations(ridge)
        held = Registers(self.denoiser, self.held_out, self.settings.batch_size, self.meter)
        for k in range(table.nfe):
            held.play(table.program, k)
        row = table.row(table.last)
        equations = walk.equations(row, self.train.end)
        ridges = SAMPLE_RIDGES if self.settings.ridge is None else (self.settings.ridge,)
        for own in (KEEP, *ridges) if len(row.entries) else (KEEP,):
            step, after = equations.solve(own)
            error = self._error(held, row.coefficients + step @ row.jacobian)
            fits = (*walk.fits, RowFit(row.number, float(equations.square), after))
            yield Choice(error, (ridge, own), table, row.entries, step, fits)

    def _error(self, held: Registers, coefficients: Tensor) -> float:
        """Mean RMSE of held-out samples, of all processes together; infinite where it is not finite."""
        errors = [rmse(held.combine(coefficients, index), self.held_out.end[index]) for index in held.parts()]
        total = self.reduce(torch.stack([double(torch.cat(errors)).sum().cpu(), float64(len(self.held_out.noise))]))
        error = float(total[0] / total[1])
        return error if error < KEEP else KEEP

    def _point(self, error: float) -> Point:
        return self.meter.point(error)
