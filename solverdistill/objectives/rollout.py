"""What a student is compared with, and by which distance: pure functions of a program and a batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.objectives.distances import Distance, Features, distance, feature_mse
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.support.type_checks import check_fields


class Outcome(NamedTuple):
    """What a roll-out of the student gives: loss of every sample, shape (batch,), and end points, (batch, ...)."""

    loss: Tensor
    end: Tensor


@dataclass(frozen=True)
class Trajectory:
    """Roll the student out and compare its states with the reference states at its own grid points.

    loss = mean over samples of sum_i weight_i distance(state_i, target_i), weight 1 at the end point and
    `intermediate` before it.

    Args:
        distance: "mse", "l1", "log_mse" or "pseudo_huber"; or "lpips_vgg", "lpips_alex" or "lpips_squeeze", of images.
        intermediate: Weight of the states before the last; 0 compares end points only.
        features: Feature extractor on images in [-1, 1]; None for none.
        feature_weight: Weight of the mean squared feature difference of the end points.
        decode: Makes the images that LPIPS and features look at, for a teacher whose samples are none; a run sets it.
    """

    distance: str = "mse"
    intermediate: float = 1.0
    features: Features | None = None
    feature_weight: float = 0.0
    decode: Features | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _ = self.measure
        if self.feature_weight and self.features is None:
            raise ValueError("feature_weight of the trajectory objective needs a feature extractor in `features`")

    def __call__(self, family: Family, params: Params, denoiser: Any, batch: Batch) -> Tensor:
        """The loss of a batch: a scalar, differentiable in the params."""
        return self.outcome(family, params, denoiser, batch).loss.mean()

    def outcome(self, family: Family, params: Params, denoiser: Any, batch: Batch) -> Outcome:
        """Roll the student out: the loss of every sample, and the end points for whatever else looks at them."""
        program = family.program(params)
        if self.intermediate == 0:
            end = sample(program, denoiser, batch.noise, batch.cond)
            loss = self.measure(end, batch.end)
        else:
            states = sample(program, denoiser, batch.noise, batch.cond, readouts=True)
            targets = batch.targets_at(family.prepared_levels(params)[1:])
            terms = [self.measure(state, target) for state, target in zip(states, targets, strict=True)]
            loss, end = terms[-1] + self.intermediate * sum(terms[:-1]), states[-1]
        if self.features is not None and self.feature_weight:
            loss = loss + self.feature_weight * feature_mse(self.features, end, batch.end, self.decode)
        return Outcome(loss, end)

    @cached_property
    def measure(self) -> Distance:
        """The distance itself."""
        return distance(self.distance, self.decode)


def endpoint(distance: str = "mse", features: Features | None = None, feature_weight: float = 0.0) -> Trajectory:
    """Compare end points only."""
    return Trajectory(distance, 0.0, features, feature_weight)
