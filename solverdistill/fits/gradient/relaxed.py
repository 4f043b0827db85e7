"""Relaxed end points (LD3, S4S) as a Lightning module: the training noise moves a little as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from solverdistill.families.base import Family, Params
from solverdistill.fits.gradient.fit import GradientFit
from solverdistill.fits.gradient.module import SolverDistillation
from solverdistill.fits.gradient.relaxed_noise import accept, move, prior_bound, project, shift_rate
from solverdistill.fits.protocol import FitPlan
from solverdistill.objectives.rollout import Outcome
from solverdistill.references.batch import Batch
from solverdistill.support.type_checks import check_fields, check_ranges


@dataclass(frozen=True)
class RelaxedFit(GradientFit):
    """Settings of relaxed fitting.

    Args:
        radius_factor: gamma of the radius gamma d / nfe^2 of the ball that a noise may move in.
        shift_scale: Learning rate of the noise is shift_scale / nfe.
    """

    radius_factor: float = 1e-3
    shift_scale: float = 12.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        check_ranges(self, "fit.", "radius_factor", "shift_scale", least=0)

    def of_step(self, family: Family) -> float:
        """Beside the student's step, the loss at the moved noises."""
        return super().of_step(family) + family.nfe

    def module(self, plan: FitPlan, family: Family, start: Params | None) -> SolverDistillation:
        """The Lightning module with a shift for every training sample."""
        sizes = {"shape": plan.shape, "samples": plan.train_samples}
        return RelaxedDistillation(**self.arguments(plan, family, start), **sizes)


class RelaxedDistillation(SolverDistillation):
    """Params and moved noises descend together; a move counts only where it lowers its own sample's loss.

    The moved noises are part of the checkpoint. See `fits.gradient.relaxed_noise` for the rule and its source.
    """

    fit: RelaxedFit
    shifts: torch.Tensor

    def __init__(self, *args: Any, samples: int, shape: tuple[int, ...], **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False
        if not hasattr(self.objective, "outcome"):
            raise ValueError("fit=relaxed needs an objective with end points: trajectory or endpoint")
        dimension = torch.Size(shape).numel()
        self.radius = prior_bound(dimension, self.family.nfe, self.fit.radius_factor)
        self.rate = shift_rate(self.family.nfe, self.fit.shift_scale)
        self.register_buffer("shifts", torch.zeros(samples, *shape))

    def descend(self, batch: Batch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        if batch.positions is None:
            raise ValueError("relaxed fitting needs batches that know the positions of their samples")
        moved = (batch.noise + self.shifts[batch.positions]).requires_grad_()
        outcome = self._outcome(batch._replace(noise=moved))
        optimizer.zero_grad()
        self.manual_backward(outcome.loss.mean())
        assert moved.grad is not None
        # The published rate is for gradients of the mean over the whole batch, of which this process has a part.
        candidate = move(moved.detach(), moved.grad / self.trainer.world_size, self.rate)
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
        candidate = project(candidate, batch.noise, self.radius)
        with torch.no_grad():
            after = self._outcome(batch._replace(noise=candidate))
        kept = accept(candidate, moved.detach(), after.loss, outcome.loss.detach())
        self._remember(batch.positions, (kept - batch.noise).to(self.shifts.dtype))
        self.log("train/loss", outcome.loss.mean().detach(), prog_bar=True, batch_size=len(moved))
        self.log("train/moved", (kept - batch.noise).flatten(1).norm(dim=1).mean(), batch_size=len(moved))

    def _remember(self, index: torch.Tensor, shift: torch.Tensor) -> None:
        """Keep the shifts of all processes' samples in every process: the next pass deals the samples out anew."""
        if self.trainer.world_size > 1:
            index = self.all_gather(index).flatten()  # type: ignore[union-attr]
            shift = self.all_gather(shift).flatten(0, 1)  # type: ignore[union-attr]
        self.shifts[index] = shift

    def _outcome(self, batch: Batch) -> Outcome:
        return self.objective.outcome(self.family, self.live_params(), self.denoiser, batch)
