"""What a student is compared with, and by which distance: pure functions of a program and a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.noise import Level
from solverdistill.perceptual import LPIPS
from solverdistill.program import sample
from solverdistill.settings import check_fields
from solverdistill.trajectories import Trajectory as ReferenceTrajectory

Features = Callable[[Tensor], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]


class Batch(NamedTuple):
    """Reference data of a batch of samples.

    Args:
        noise: Unit-normal noise. Shape: (batch, ...).
        targets: Reference states at the student's grid points after the first, where these are fixed. Shape:
            (steps, batch, ...); empty (0, batch, ...) for a student that learns its noise levels.
        end: Reference end point. Shape: (batch, ...).
        cond: Condition, or None.
        reference: The whole reference trajectory, for students that learn their noise levels and for local objectives.
        positions: Positions of the samples in the training set. Shape: (batch,).
    """

    noise: Tensor
    targets: Tensor
    end: Tensor
    cond: Any = None
    reference: ReferenceTrajectory | None = None
    positions: Tensor | None = None

    def targets_at(self, levels: Sequence[Level]) -> Tensor:
        """Reference states at the levels of the student's grid after the first. Shape: (steps, batch, ...)."""
        if self.reference is None:
            return self.targets
        return self.reference.at(levels).to(self.noise.dtype)


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference per sample. Shape: (batch,)."""
    return (a - b).flatten(1).pow(2).mean(1)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference per sample. Shape: (batch,)."""
    return (a - b).flatten(1).abs().mean(1)


def log_mse(a: Tensor, b: Tensor) -> Tensor:
    """log of the mean squared difference per sample, 1e-20 at least: -PSNR up to constants (BNS). Shape: (batch,)."""
    return torch.log(mse(a, b).clamp(min=1e-20))


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(dimension) per sample (Song, Dhariwal 2023, Eq. 8)."""
    square = (a - b).flatten(1).pow(2)
    c = 0.00054 * square.shape[1] ** 0.5
    return (square.sum(1) + c**2).sqrt() - c


DISTANCES: dict[str, Distance] = {
    "mse": mse,
    "l1": l1,
    "log_mse": log_mse,
    "pseudo_huber": pseudo_huber,
}


def distance(name: str, decode: Features | None = None) -> Distance:
    """Look a distance up by name; "lpips_vgg", "lpips_alex" and "lpips_squeeze" load their network.

    Args:
        name: Its name.
        decode: Makes images of samples for those that look at images; None where samples are images.
    """
    if name.startswith("lpips_"):
        perceptual = LPIPS(name.removeprefix("lpips_"))
        return perceptual if decode is None else on_images(perceptual, decode)
    if name not in DISTANCES:
        known = ", ".join([*DISTANCES, "lpips_vgg", "lpips_alex", "lpips_squeeze"])
        raise ValueError(f"distance {name!r} is unknown; known: {known}")
    return DISTANCES[name]


def on_images(distance: Distance, decode: Features) -> Distance:
    """A distance between the images of samples, differentiable in the first argument alone."""

    def measure(samples: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = decode(targets)
        return distance(decode(samples), wanted)

    return measure


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


def feature_mse(features: Features, sample: Tensor, target: Tensor, decode: Features | None = None) -> Tensor:
    """Mean squared difference of the features of images per sample; the target's are constants. Shape: (batch,)."""
    image_features = features if decode is None else lambda x: features(decode(x))
    with torch.no_grad():
        wanted = image_features(target)
    return (image_features(sample) - wanted).flatten(1).pow(2).mean(1)


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
