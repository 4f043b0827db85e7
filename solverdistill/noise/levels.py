"""Noise levels as scale-free pairs (alpha, sigma), in float64 on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor


class Level(NamedTuple):
    """A noise level: signal scale alpha and noise scale sigma, both float64 scalars."""

    alpha: Tensor
    sigma: Tensor

    def hypot(self) -> Tensor:
        """Standard deviation of a state of unit-variance data at this level."""
        return torch.hypot(self.alpha, self.sigma)


def float64(value: Scalar | Sequence[float]) -> Tensor:
    """Return `value` as a float64 tensor on the host, keeping its gradient."""
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def make_level(alpha: Scalar, sigma: Scalar) -> Level:
    """Return the pair (alpha, sigma) as float64 host scalars."""
    return Level(float64(alpha), float64(sigma))


def analytical_denoised(x: Any, level: Level) -> Any:
    """Posterior mean for zero-mean, unit-variance data; the analytical first step of Dockhorn et al. 2022.

    denoised = x alpha / (h (h + sigma)), h = hypot(alpha, sigma); in EDM coordinates the slope is x / hypot(1, sigma).
    The form is that of the slope x / h in EDM coordinates, not the exact Gaussian mean alpha x / h^2.
    """
    h = level.hypot()
    return x * (level.alpha / (h * (h + level.sigma)))
