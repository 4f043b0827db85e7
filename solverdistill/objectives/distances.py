"""Distances between samples, one value per sample, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from solverdistill.objectives.lpips import LPIPS


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean squared difference of each sample. Shape: (batch,)."""
    return (a - b).flatten(1).pow(2).mean(1).sqrt()


Features = Callable[[Tensor], Tensor]


Distance = Callable[[Tensor, Tensor], Tensor]


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
    """``sqrt(|a - b|^2 + c^2) - c`` with c = 0.00054 sqrt(dimension) per sample (Song, Dhariwal 2023, Eq. 8)."""
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


def feature_mse(features: Features, sample: Tensor, target: Tensor, decode: Features | None = None) -> Tensor:
    """Mean squared difference of the features of images per sample; the target's are constants. Shape: (batch,)."""
    image_features = features if decode is None else lambda x: features(decode(x))
    with torch.no_grad():
        wanted = image_features(target)
    return (image_features(sample) - wanted).flatten(1).pow(2).mean(1)
