"""`fit=gradient`: the Lightning module of a student run by a trainer, as a fit like any other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from solverdistill.families.base import Family, Params
from solverdistill.fits.gradient.module import FitSettings, SolverDistillation
from solverdistill.fits.protocol import Descent, FitContext, FitPlan, Standing
from solverdistill.fits.report import BACKWARD_COST
from solverdistill.references.datamodule import TargetDataModule
from solverdistill.support.processes import count


@dataclass(frozen=True)
class GradientFit(FitSettings):
    """Settings of gradient descent on any objective; other fits with an optimizer differ in the module they run."""

    needs_trajectories: ClassVar[bool] = False  # but an objective may
    resumes: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True

    def check(self, plan: FitPlan) -> None:
        """Refuse a second fit with an optimizer, and what cannot be trained."""
        trained = [fit for fit in plan.fits.values() if isinstance(fit, GradientFit)]
        if len(trained) > 1:
            raise ValueError(f"{plan.chosen} has {len(trained)} fits with an optimizer; keep one of them")
        descent_of(plan).optimizer([("check", torch.nn.Parameter(torch.zeros(1)))])
        self.module(plan, plan.student.family, None)

    def expected(self, plan: FitPlan) -> int:
        """All iterations; every process looks at all held-out samples, before the first and at every validation."""
        validations = 1 + math.ceil(self.iterations / self.interval)
        held_out = count() * plan.held_out_samples * plan.student.family.nfe
        each = self.batch_size * self.of_step(plan.student.family)
        return math.ceil(self.iterations * each) + validations * held_out

    def of_step(self, family: Family) -> float:
        """Forward equivalents of a training step, per sample."""
        return family.nfe * (1 + self.backward)

    @property
    def backward(self) -> float:
        """Forward equivalents of a backward pass, per evaluation that it goes through."""
        return BACKWARD_COST + self.checkpointing

    def run(self, context: FitContext) -> Standing:
        """Descend from the standing, or go on from a checkpoint."""
        plan, before = context.plan, context.standing
        module = self.module(plan, before.student.family, before.params)
        data = TargetDataModule(context.data, self.batch_size, self.iterations, plan.seed)
        descent = descent_of(plan)
        descent.trainer(self).fit(module, datamodule=data, ckpt_path=descent.checkpoint, weights_only=True)
        return replace(before.after(module.report(), module.best_params), last=module.current_params())

    def module(self, plan: FitPlan, family: Family, start: Params | None) -> SolverDistillation:
        """The Lightning module.

        Args:
            plan: The fits of the run.
            family: The student.
            start: Params to start from; None for the family's own initial ones.
        Raises:
            ValueError: the student has no params, or the objective does not go with the fit.
        """
        return SolverDistillation(**self.arguments(plan, family, start))

    def arguments(self, plan: FitPlan, family: Family, start: Params | None) -> dict[str, Any]:
        """What every module takes."""
        descent, iterations = descent_of(plan), self.iterations
        schedule = descent.schedule
        return {
            "family": family,
            "denoiser": plan.denoiser,
            "objective": descent.objective,
            "optimizer": descent.optimizer,
            "fit": self,
            "scheduler": None if schedule is None else lambda optimizer: schedule(optimizer, iterations),
            "seed": plan.seed,
            "start": start,
        }


def descent_of(plan: FitPlan) -> Descent:
    """What the plan has for fits with an optimizer."""
    if plan.descent is None:
        raise ValueError("a fit with an optimizer needs a plan with an objective, an optimizer and a trainer")
    return plan.descent
