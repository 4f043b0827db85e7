"""The exact denoiser of a Gaussian mixture: a teacher in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.noise.paths import Path


class Mixture(Teacher):
    """Posterior mean of data ~ sum_k w_k N(mu_k, s_k^2 I), exact at every noise level.

    With V_k = alpha^2 s_k^2 + sigma^2 and responsibilities r_k ~ w_k N(x; alpha mu_k, V_k I):
    denoised = sum_k r_k (mu_k + alpha s_k^2 / V_k (x - alpha mu_k)). Computed in float64, returned in x's dtype.

    Args:
        means: Component means. Shape: ``(components, *sample shape)``.
        weights: Component weights, positive; normalised here. Shape: (components,).
        stds: Component standard deviations. Shape: (components,).
        labels: Class of every component; a class label as `cond` then keeps the components of that class. Shape:
            (components,).
        name: Name of the teacher.
        path: Its own noise path; EDM by default.
        noise_range: Largest and smallest noise level, in the path's own unit.
    """

    means: Tensor
    weights: Tensor
    stds: Tensor
    labels: Tensor | None

    def __init__(
        self,
        means: Tensor | Sequence[Any],
        weights: Tensor | Sequence[float],
        stds: Tensor | Sequence[float],
        labels: Tensor | Sequence[int] | None = None,
        name: str = "mixture",
        path: Path | None = None,
        noise_range: tuple[float, float] = (80.0, 0.002),
    ) -> None:
        centres = torch.as_tensor(means, dtype=torch.float64)
        classes = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        num_classes = 0 if classes is None else int(classes.max()) + 1
        super().__init__(name, tuple(centres.shape[1:]), path, noise_range, num_classes=num_classes)
        weights, stds = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, stds))
        for what, value in (("weights", weights), ("stds", stds)):
            if value.shape != centres.shape[:1] or not bool((value > 0).all()):
                raise ValueError(f"{what} of a mixture of {len(centres)} components must be as many positive numbers")
        self.register_buffer("means", centres.flatten(1))
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("stds", stds)
        self.register_buffer("labels", classes)

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        y = x.flatten(1).double()
        a, g = alpha.double()[:, None], sigma.double()[:, None]
        variance = a**2 * self.stds**2 + g**2
        square = (y**2).sum(1, keepdim=True) - 2 * a * (y @ self.means.T) + a**2 * (self.means**2).sum(1)
        log_r = torch.log(self.weights) - 0.5 * (y.shape[1] * torch.log(variance) + square / variance)
        if cond is not None:
            excluded = (cond[:, None] >= 0) & (cond[:, None] != self.labels)
            log_r = log_r.masked_fill(excluded, -torch.inf)
        r = torch.softmax(log_r, dim=1)
        gain = a * self.stds**2 / variance
        denoised = (r * (1 - a * gain)) @ self.means + (r * gain).sum(1, keepdim=True) * y
        return denoised.view_as(x).to(x.dtype)


def mixture(
    means: Tensor | Sequence[Any], weights: Tensor | Sequence[float], stds: Tensor | Sequence[float], **options: Any
) -> Mixture:
    """The exact denoiser of a Gaussian mixture; see `Mixture`."""
    return Mixture(means, weights, stds, **options)


def toy_mixture(dims: int = 6, components: int = 4, seed: int = 0) -> Mixture:
    """A small seeded mixture for tests and for trying things: means N(0, 1), stds in [0.1, 0.4]."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, dims, generator=generator, dtype=torch.float64)
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.2
    stds = 0.1 + 0.3 * torch.rand(components, generator=generator, dtype=torch.float64)
    return Mixture(means, weights, stds, name="mixture")
