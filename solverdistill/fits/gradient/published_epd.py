"""The published EPD schedule as a Lightning module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from solverdistill.families.base import Family, Params
from solverdistill.fits.gradient.fit import GradientFit
from solverdistill.fits.gradient.module import SolverDistillation
from solverdistill.fits.protocol import FitPlan
from solverdistill.objectives.published_epd import PublishedEPD
from solverdistill.references.batch import Batch


@dataclass(frozen=True)
class PublishedEPDFit(GradientFit):
    """Settings of EPD's published schedule: those of gradient descent."""

    def of_step(self, family: Family) -> float:
        """The loss of every solver step is propagated back through all steps until then."""
        return family.nfe * (1 + self.backward * (family.steps + 1) / 2)

    def module(self, plan: FitPlan, family: Family, start: Params | None) -> SolverDistillation:
        """The Lightning module that steps inside the roll-out."""
        return PublishedEPDDistillation(**self.arguments(plan, family, start))


class PublishedEPDDistillation(SolverDistillation):
    """An optimizer step after the loss of every solver step, inside the roll-out.

    Gradients that are not a number become 0 and infinite ones +-1e5, as in the published code.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def descend(self, batch: Batch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        if not isinstance(self.objective, PublishedEPD):
            raise ValueError("fit=published_epd needs objective=published_epd, whose loss comes step by step")
        for step in self.objective.steps(self.family, self.live_params, self.denoiser, batch):
            self.log(f"train/loss_step{step.step}", step.loss.detach(), batch_size=batch.noise.shape[0])
            if step.back_propagated:
                optimizer.zero_grad()
                self.manual_backward(step.loss, retain_graph=True)
                for value in self.params.parameters():
                    if value.grad is not None:
                        torch.nan_to_num(value.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=value.grad)
                optimizer.step()
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
