"""The loss schedule of the EPD code: a loss per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.objectives.distances import Features, feature_mse
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.support.type_checks import check_fields


class StepLoss(NamedTuple):
    """One step of a published EPD roll-out."""

    step: int
    state: Tensor
    loss: Tensor
    back_propagated: bool


@dataclass(frozen=True)
class PublishedEPD:
    """The loss schedule of the EPD code: one loss per step, to be followed by an optimiser step each.

    Steps before the last: sum over elements of (state - target)^2, divided by the batch. Last step: `alpha` times the
    number of elements times the mean squared feature difference of clip(127.5 x + 128, 0, 255). With fewer than
    `gate_steps` steps in a non-plug-in student on pixels only the last loss is back-propagated, otherwise all are,
    each through the whole chain so far; history entries are detached.
    Reference: Zhu et al., ICCV 2025, as its code does it (10.48550/arXiv.2507.14797).

    Args:
        features: Maps images in [0, 255] to features; None compares the clipped images themselves.
        alpha: Weight of the feature loss.
        latent: Latent-space students back-propagate every step.
        decode: Makes the images of samples that are none; a run sets it.
    """

    features: Features | None = None
    alpha: float = 10.0
    latent: bool = False
    gate_steps: int = 5
    decode: Features | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def steps(self, family: Family, params: Callable[[], Params], denoiser: Any, batch: Batch) -> Iterator[StepLoss]:
        """Yield the loss of each step; `params` is read anew at every step, so updates in between take effect."""
        if family.learns_levels:
            raise ValueError("objective=published_epd compares states on a fixed grid; set solver.learn_times=false")
        only_last = not self.latent and family.name == "epd" and family.steps < self.gate_steps
        state = batch.noise * family.start_scale(params()).to(batch.noise)
        history: tuple[Tensor, ...] = ()
        targets = batch.targets_at(family.prepared_levels(params())[1:])
        for i in range(family.steps):
            program = family.step_program(i, params())
            outputs = sample(program, denoiser, (state, *history), batch.cond, readouts=True)
            state, history = outputs[-1], tuple(entry.detach() for entry in outputs[:-1])
            last = i == family.steps - 1
            loss = self.last_loss(state, targets[i]) if last else _sum_of_squares(state, targets[i])
            yield StepLoss(i, state, loss, last or not only_last)

    def last_loss(self, state: Tensor, target: Tensor) -> Tensor:
        """The feature loss of the last step, broadcast to every element and summed as in the published code."""
        features = self.features or torch.nn.Identity()

        def pixels(x: Tensor) -> Tensor:
            return (127.5 * (x if self.decode is None else self.decode(x)) + 128).clamp(0, 255)

        return self.alpha * state[0].numel() * feature_mse(features, state, target, pixels).mean()


def _sum_of_squares(state: Tensor, target: Tensor) -> Tensor:
    return (state - target).pow(2).sum() / state.shape[0]
