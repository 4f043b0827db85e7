"""Damped Gauss-Newton (Levenberg-Marquardt) on the end points: second-order fits of the few params of a student.

A step solves ``(H + damping diag(H)) step = -g`` with the equations of `fits.gauss_newton.normal_equations`, on fresh
samples each time, and is kept only if it lowers the error on held-out samples.

With exact derivatives one iteration costs a directional derivative per param. With sketched curvature it costs two
backward passes whatever the number of params, and the curvature of former iterations is remembered: H is a running mean
over sketches. It is the default because it ends lower for less (docs/benchmarks/fits.md); exact derivatives need no
activations, so their memory is that of inference.

References: Levenberg, Quarterly of Applied Mathematics 2, 1944; Marquardt, SIAM Journal 11, 1963, Eq. 33.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from solverdistill.denoisers.wrappers import Checkpointed
from solverdistill.families.base import Family, Params
from solverdistill.fits.batches import error_of, take
from solverdistill.fits.gauss_newton.halving import descend, plan_rounds
from solverdistill.fits.gauss_newton.normal_equations import Equations, NormalEquations, damped_step, moved
from solverdistill.fits.gauss_newton.sketches import random_signs
from solverdistill.fits.protocol import Finalist, FitContext, FitPlan, Progress, Standing
from solverdistill.fits.report import BACKWARD_COST, TANGENT_COST, FitReport, Meter, Point
from solverdistill.references.batch import Batch
from solverdistill.support.processes import dealt, share
from solverdistill.support.type_checks import LARGEST_SEED, check_fields, check_ranges

JACOBIANS = ("sketch", "exact")
FIRST_DAMPING = {"sketch": 0.1, "exact": 0.01}  # the first sketches are rough
LAST_TRIES = 6  # further dampings where giving up ends the fit, because the equations would be the same again
FAMILY_STEPS = 4  # of the best start of every family, before families are compared
SPENT = "budget spent"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GaussNewtonFit:
    """Settings of `fit_gauss_newton`.

    Args:
        iterations: Steps, at most.
        samples: Training samples per step, drawn anew for each; null for all.
        batch_size: Samples that go through the network at once.
        jacobian: "sketch": curvature from random projections, two backward passes per step; "exact": all derivatives
            in forward mode, without back-propagation.
        sketches: Random projections of every sample; each costs a backward pass.
        memory: Share of the remembered curvature in that of a sketched step.
        checkpointing: Recompute the network in the backward pass of a sketch, so that one network graph is in memory
            at a time.
        directions: Directional derivatives taken at once by "exact"; they multiply the memory of a batch.
        damping: Damping of the first step, a share of the diagonal; null: that of `FIRST_DAMPING`.
        damping_factor: Factor between the dampings that are tried.
        tries: Dampings tried per step, at most.
        power: The fit lowers mean rmse^power: 1 is the mean error, up to 2 the worst samples weigh more. Steps are kept
            by the mean error all the same.
        floor: Smallest error that reweighting divides by, as a share of the held-out mean error.
        tolerance: Share by which a step must lower the held-out error to count as progress.
        patience: Steps without progress after which the fit stops.
        evaluations: Budget of network evaluations, in forward equivalents, after which the fit stops; null for none.
        starts: Finalists of a race that take the first steps; see `halving`.
        seed: Seed of the initial params, of the samples drawn and of the projections.
    """

    iterations: int = 30
    samples: int | None = 128
    batch_size: int = 64
    jacobian: str = "sketch"
    sketches: int = 1
    memory: float = 0.5
    checkpointing: bool = False
    directions: int = 8
    damping: float | None = None
    damping_factor: float = 4.0
    tries: int = 4
    power: float = 1.0
    floor: float = 0.1
    tolerance: float = 0.01
    patience: int = 4
    evaluations: int | None = None
    starts: int = 1
    seed: int = 0
    needs_trajectories: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    differentiates: ClassVar[bool] = True
    weighs_families: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        names = ("iterations", "samples", "batch_size", "sketches", "directions", "tries", "patience", "evaluations")
        check_ranges(self, "fit.", *names, "starts", least=1)
        check_ranges(self, "fit.", "damping", "floor", above=0)
        check_ranges(self, "fit.", "damping_factor", above=1)
        check_ranges(self, "fit.", "memory", least=0, below=1)
        check_ranges(self, "fit.", "power", least=1, most=2)
        check_ranges(self, "fit.", "tolerance", least=0)
        check_ranges(self, "fit.", "seed", least=0, most=LARGEST_SEED)
        if self.jacobian not in JACOBIANS:
            raise ValueError(f"fit.jacobian {self.jacobian!r} is unknown; known: {', '.join(JACOBIANS)}")

    def check(self, plan: FitPlan) -> None:
        """Every student can be fitted."""

    def expected(self, plan: FitPlan) -> int:
        """All iterations of all starts, or the budget and one more, with every damping tried."""
        family, wanted = plan.student.family, self.samples or plan.train_samples
        passes = 1 + BACKWARD_COST * (1 + self.sketches)
        if self.jacobian == "exact":  # one by one, where the network takes no more at once
            passes = 1 + (1 + TANGENT_COST) * sum(value.numel() for value in family.init(plan.seed).values())
        repeats = self.jacobian == "exact" and wanted >= plan.train_samples
        tries = self.tries + (LAST_TRIES if repeats else 0)
        each = math.ceil(passes * dealt(min(wanted, plan.train_samples)) * family.nfe) + tries * plan.held_out
        after = next(iter(plan.fits.values())) is not self  # a race, which has more than one start
        starts = (self.starts if after else 1) + len(plan.rivals)
        steps = sum(count * steps for count, steps in plan_rounds(starts, self.iterations, self.first(plan.rivals)))
        most = starts * plan.held_out + steps * each
        return most if self.evaluations is None else min(most, self.evaluations + each)

    def run(self, context: FitContext) -> Standing:
        """Descend from the standing, from other finalists of a race that just ended and from rivals; the best goes on.

        Where no race came first, the rivals are those of the plan, at their own initial params.
        """
        before, settings = context.standing, replace(self, seed=context.plan.seed)
        train, held_out = context.samples("train"), context.samples("validation")
        first = Finalist(before.student, before.params)
        rivals = before.rivals
        if next(iter(context.plan.fits.values())) is self:
            rivals = tuple(Finalist(student, None) for student in context.plan.rivals)
        starts = [first, *rivals, *before.finalists[: self.starts - 1]]
        meter, fits = Meter(train.noise.device), list[_Fit]()
        with torch.no_grad():
            for start in starts:
                fit = _Fit(start.student.family, context.plan.denoiser, train, held_out, settings, meter)
                fit.begin(start.params, before.rmse if start is first else None)
                fits.append(fit)
            best = descend(fits, self.iterations, context.progress, self.first(rivals))
        fit, student = fits[best], starts[best].student
        note = f"; start {best + 1} of {len(fits)} went on" if len(fits) > 1 else ""
        if rivals:
            ends = (f"{one.student.family.name} {fit.rmse:.4f}" for one, fit in zip(starts, fits, strict=True))
            note = f"; {student.family.name} went on: {', '.join(ends)}"
        return before.after(fit.report(note), fit.params, student)

    @staticmethod
    def first(rivals: Sequence[Any]) -> int:
        """Steps of all starts before the best of them go on."""
        return FAMILY_STEPS if rivals else 1


@torch.no_grad()
def fit_gauss_newton(
    family: Family,
    denoiser: Any,
    train: Batch,
    held_out: Batch,
    settings: GaussNewtonFit | None = None,
    start: Params | None = None,
    progress: Progress | None = None,
    error: float | None = None,
) -> tuple[Params, FitReport]:
    """Fit a student's params to reference end points; see the module for the equations.

    A step is kept only if it lowers the mean RMSE on the held-out samples, so the last params are the best, and a step
    that diverges, or that the family refuses, is undone. From one damping on, larger ones are tried until a step is
    kept, or smaller ones while they are better still; the next iteration begins with the damping that was best.
    Deterministic for a seed. Processes of one run share the samples and end at the same params.

    Args:
        family: The student.
        denoiser: The teacher, possibly guided, on the device of the batches.
        train: Samples to fit, with their end points; the same in all processes.
        held_out: Samples that decide which steps are kept; the same in all processes.
        settings: How the fit runs.
        start: Params to start from; those of the seed by default.
        progress: Called with (iteration, iterations, held-out error).
        error: Mean RMSE of the start on the held-out samples, where it is known already.
    Returns:
        The params, float64 on the host, and the report.
    Raises:
        ValueError: the family has no params that change its table.
    """
    settings = settings or GaussNewtonFit()
    fit = _Fit(family, denoiser, train, held_out, settings, Meter(train.noise.device))
    fit.begin(start, error)
    descend([fit], settings.iterations, progress)
    return fit.params, fit.report()


class _Fit:
    """One descent of Gauss-Newton; several may share a meter, and with it a budget of evaluations."""

    def __init__(
        self,
        family: Family,
        denoiser: Any,
        train: Batch,
        held_out: Batch,
        settings: GaussNewtonFit,
        meter: Meter,
    ) -> None:
        self.family, self.denoiser, self.train, self.settings = family, denoiser, train, settings
        self.held_out, self.meter = held_out, meter
        recomputed = settings.checkpointing and settings.jacobian == "sketch"
        self.equations = Equations(
            Checkpointed(denoiser) if recomputed else denoiser,
            settings.batch_size,
            settings.jacobian,
            settings.sketches,
            settings.power,
            settings.directions,
            self.meter,
        )
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.damping = FIRST_DAMPING[settings.jacobian] if settings.damping is None else settings.damping
        self.order = torch.empty(0, dtype=torch.int64)
        self.params, self.history = Params(), list[Point]()
        self.remembered: NormalEquations | None = None
        self.idle, self.stopped = 0, ""

    def begin(self, start: Params | None, known: float | None) -> None:
        """Stand at the start, whose error may be known."""
        initial = self.family.init(self.settings.seed) if start is None else start
        self.params = {name: value.detach().to("cpu", torch.float64) for name, value in initial.items()}
        self.history = [self._point(self.error(self.params) if known is None else known)]

    def go_on(self, steps: int, told: Callable[[float], None]) -> None:
        """Take steps, at most this many; `told` hears the held-out error after each."""
        for _ in range(steps):
            if self._spent and not self.stopped:
                self.stopped = SPENT  # by the other descents
            if self.stopped:
                return
            self._step()
            told(self.rmse)

    @property
    def rmse(self) -> float:
        """Held-out error where the fit stands."""
        return self.history[-1].rmse

    def report(self, note: str = "") -> FitReport:
        """What was done and what it cost."""
        note = f"derivatives: {self.equations.derivatives}{note}"
        return FitReport.of("gauss_newton", self.history, self.meter, self.stopped or "all iterations done", note)

    def _step(self) -> None:
        """One step; says in `stopped` why there should be no other."""
        settings, before = self.settings, self.rmse
        drawn = self._linearise(self.params, before)
        if not drawn.finite:
            self.stopped = "the derivatives are not finite"
            return
        self.remembered = self._remember(self.remembered, drawn)
        self.params, error = self._advance(self.params, before, self.remembered)
        self.idle = self.idle + 1 if error > (1 - settings.tolerance) * before else 0
        self.history.append(self._point(error))
        log.debug("gauss_newton: held-out RMSE %.4g after %d evaluations", error, self.meter.evaluations)
        if error == before and self._repeats:
            self.stopped = "no step lowers the held-out error"
        elif self.idle >= settings.patience:
            self.stopped = "plateau"
        elif self._spent:
            self.stopped = SPENT

    def error(self, params: Params) -> float:
        """Mean RMSE on the held-out samples of all processes; infinite where the family refuses the params."""
        of = self.denoiser, self.held_out, self.settings.batch_size, self.meter
        return error_of(lambda: self.family.program(params), *of)

    def _linearise(self, params: Params, error: float) -> NormalEquations:
        """Normal equations on samples drawn by position, of which each process takes its share."""
        positions = self._draw()
        signs = torch.empty(0, len(positions), dtype=torch.int8)
        if self.settings.jacobian == "sketch":
            shape = (self.settings.sketches, len(positions), *self.train.noise.shape[1:])
            signs = random_signs(shape, self.generator)
        own = share(torch.arange(len(positions)))
        batch, floor = take(self.train, positions[own]), self.settings.floor * error
        return self.equations(self.family, params, batch, signs[:, own], floor, len(positions))

    def _remember(self, before: NormalEquations | None, drawn: NormalEquations) -> NormalEquations:
        """The running mean of sketched curvatures; the gradient is always that of the samples drawn."""
        if before is None or self.settings.jacobian != "sketch":
            return drawn
        memory = self.settings.memory
        return NormalEquations(memory * before.H + (1 - memory) * drawn.H, drawn.g)

    def _advance(self, params: Params, error: float, equations: NormalEquations) -> tuple[Params, float]:
        """Walk along the damping: up until the error falls, or down while it falls further."""
        best, damping, factor = (params, error), self.damping, 0.0
        for attempt in range(self.settings.tries + (LAST_TRIES if self._repeats else 0)):
            if attempt >= self.settings.tries and best[1] < error:
                break
            candidate = moved(params, damped_step(equations, damping))
            trial = self.error(candidate)
            better = trial < best[1]
            if better:
                best, self.damping = (candidate, trial), damping
            if factor == 0.0:
                factor = 1 / self.settings.damping_factor if better else self.settings.damping_factor
            elif better != (factor < 1):
                break
            damping *= factor
        if best[1] == error and not self._repeats:
            self.damping *= self.settings.damping_factor  # other samples come next: begin with a shorter step
        return best

    @property
    def _spent(self) -> bool:
        return self.settings.evaluations is not None and self.meter.evaluations >= self.settings.evaluations

    @property
    def _takes_all(self) -> bool:
        return self.settings.samples is None or self.settings.samples >= self.train.noise.shape[0]

    @property
    def _repeats(self) -> bool:
        """Whether the next iteration would find the same equations again."""
        return self._takes_all and self.settings.jacobian == "exact"

    def _draw(self) -> Tensor:
        """Positions of the samples of a step: the next ones of a seeded order, which is drawn anew when used up."""
        count, wanted = self.train.noise.shape[0], self.settings.samples
        if wanted is None or wanted >= count:
            return torch.arange(count)
        if len(self.order) < wanted:
            self.order = torch.randperm(count, generator=self.generator)
        drawn, self.order = self.order[:wanted], self.order[wanted:]
        return drawn

    def _point(self, error: float) -> Point:
        return self.meter.point(error)
