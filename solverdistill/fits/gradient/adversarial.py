"""Adversarial fitting (GAS) as a Lightning module with two optimizers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.fits.gradient.discriminators import (
    GAMMA,
    Discriminator,
    discriminator_loss,
    generator_loss,
    paper_discriminator,
    small_discriminator,
)
from solverdistill.fits.gradient.fit import GradientFit
from solverdistill.fits.gradient.module import SolverDistillation
from solverdistill.fits.protocol import FitPlan
from solverdistill.objectives.rollout import Outcome
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.references.seeding import SPLITS, noise_of
from solverdistill.support.type_checks import check_fields, check_ranges


@dataclass(frozen=True)
class AdversarialFit(GradientFit):
    """Settings of adversarial fitting.

    Args:
        weight: Weight of the adversarial term beside the objective.
        gamma: Weight of the gradient penalties of the discriminator.
        discriminator: "paper" (32 pixels and up), "small", or "auto" by the size of the images.
        discriminator_lr: Learning rate of the discriminator's Adam.
    """

    weight: float = 0.1
    gamma: float = GAMMA
    discriminator: str = "auto"
    discriminator_lr: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        check_ranges(self, "fit.", "weight", "gamma", "discriminator_lr", least=0)
        if self.discriminator not in ("auto", "paper", "small"):
            raise ValueError(f"fit.discriminator must be auto, paper or small, not {self.discriminator!r}")

    def of_step(self, family: Family) -> float:
        """Beside the student's step, samples of fresh noise for the discriminator."""
        return super().of_step(family) + family.nfe

    def module(self, plan: FitPlan, family: Family, start: Params | None) -> SolverDistillation:
        """The Lightning module with a discriminator for samples of the run's shape."""
        return AdversarialDistillation(**self.arguments(plan, family, start), shape=plan.shape)


class AdversarialDistillation(SolverDistillation):
    """Relativistic adversarial term on top of any objective that rolls the student out.

    An iteration: student end points with gradients; a discriminator step on student samples of fresh noise against the
    teacher's end points; a student step on objective + weight * generator loss, the discriminator held fixed.
    Checkpoints hold both networks' optimizers and the discriminator.
    Reference: Oganov et al., "GAS", ICLR 2026, Alg. 1.
    """

    fit: AdversarialFit

    def __init__(self, *args: Any, shape: tuple[int, ...], **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False
        if not hasattr(self.objective, "outcome"):
            raise ValueError("fit=adversarial needs an objective with end points: trajectory or endpoint")
        self.discriminator = make_discriminator(self.fit.discriminator, shape, self.seed)

    def descend(self, batch: Batch, batch_idx: int) -> None:
        student, critic = self.optimizers()  # type: ignore[misc]
        outcome: Outcome = self.objective.outcome(self.family, self.live_params(), self.denoiser, batch)
        self._step_discriminator(critic, batch, batch_idx)
        self.discriminator.requires_grad_(False)
        adversarial = generator_loss(self.discriminator, outcome.end, batch.end.to(outcome.end.dtype)).mean()
        distillation = outcome.loss.mean()
        student.zero_grad()
        self.manual_backward(distillation + self.fit.weight * adversarial)
        self.discriminator.requires_grad_(True)
        student.step()
        for scheduler in self._schedulers():
            scheduler.step()
        size = batch.noise.shape[0]
        self.log("train/loss", distillation.detach(), prog_bar=True, batch_size=size)
        self.log("train/generator", adversarial.detach(), prog_bar=True, batch_size=size)

    def _step_discriminator(self, optimizer: Any, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            program = self.family.program(self.live_params()).detach()
            fake = sample(program, self.denoiser, self._fresh_noise(batch, batch_idx), batch.cond)
        losses = discriminator_loss(self.discriminator, fake, batch.end.to(fake.dtype), self.fit.gamma)
        optimizer.zero_grad()
        with self.spending.elsewhere():
            self.manual_backward(losses.total.mean())
        optimizer.step()
        for name in ("total", "r1", "r2"):
            self.log(f"train/discriminator_{name}", getattr(losses, name).mean().detach(), batch_size=len(fake))

    def _fresh_noise(self, batch: Batch, batch_idx: int) -> Tensor:
        """Noise that no target was made for, a function of (seed, global position of the sample) alone."""
        local = batch.noise.shape[0]
        first = SPLITS["fresh"] + batch_idx * local * self.trainer.world_size
        indices = range(first + self.global_rank, first + local * self.trainer.world_size, self.trainer.world_size)
        return noise_of(indices, tuple(batch.noise.shape[1:]), self.seed).to(batch.noise)

    def _schedulers(self) -> list[Any]:
        schedulers = self.lr_schedulers()
        if schedulers is None:
            return []
        return schedulers if isinstance(schedulers, list) else [schedulers]

    def configure_optimizers(self) -> Any:
        student = self.make_optimizer(self.params.items())
        critic = torch.optim.Adam(self.discriminator.parameters(), lr=self.fit.discriminator_lr)
        schedulers = [] if self.make_scheduler is None else [self.make_scheduler(student)]
        return [student, critic], schedulers

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if optimizer.param_groups[0]["params"][0] is next(iter(self.params.values())):
            super().on_before_optimizer_step(optimizer)


def make_discriminator(kind: str, shape: tuple[int, ...], seed: int) -> Discriminator:
    """A discriminator for images of `shape`, its initial weights given by the seed.

    Raises:
        ValueError: the samples are no images (channels, height, width).
    """
    if len(shape) != 3:
        raise ValueError(f"adversarial fitting needs images (channels, height, width), not samples of shape {shape}")
    kind = ("paper" if min(shape[1:]) >= 32 else "small") if kind == "auto" else kind
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image = (shape[0], shape[1], shape[2])
        network = paper_discriminator(image) if kind == "paper" else small_discriminator(image)
    return network
