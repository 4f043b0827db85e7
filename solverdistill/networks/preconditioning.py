"""Preconditioning: from a raw network F to a denoiser D in EDM coordinates ``x = x0 + sigma n``.

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

with the four choices of table 1 of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
NeurIPS 2022 (s = sigma, d = sigma_data):

    kind   c_skip             c_out                 c_in               c_noise
    edm    d^2 / (s^2 + d^2)  s d / sqrt(s^2 + d^2) 1/sqrt(s^2 + d^2)  ln(s) / 4
    vp     1                  -s                    1/sqrt(s^2 + 1)    (M - 1) t
    ve     1                  s                     1                  ln(s / 2)
    iddpm  1                  -s                    1/sqrt(s^2 + 1)    M - 1 - argmin_j |u_j - s|

Here t solves s^2 = exp(beta_d t^2 / 2 + beta_min t) - 1, and u is the table of :func:`iddpm_noise_levels`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Kind = Literal["edm", "vp", "ve", "iddpm"]


class Coefficients(NamedTuple):
    """The four scalars of a preconditioning, each of the shape of sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


def iddpm_noise_levels(steps: int = 1000, floor: float = 0.001, offset: float = 0.008) -> Tensor:
    """Noise levels of the cosine schedule of improved DDPM, from the largest to zero.

        u_M = 0,   u_{j-1}^2 = (u_j^2 + 1) / max(a_{j-1} / a_j, C_1) - 1,   a_j = sin^2(pi/2 j / (M (C_2 + 1)))

    Args:
        steps: M.
        floor: C_1, which bounds the last steps.
        offset: C_2, the cosine schedule's offset.
    Returns:
        Decreasing levels u_0 .. u_M in float32. Shape: (steps + 1,).
    Reference: Karras et al. 2022, appendix C.3.
    """
    alpha = [math.sin(0.5 * math.pi * j / (steps * (offset + 1))) ** 2 for j in range(steps + 1)]
    levels = [0.0] * (steps + 1)
    for j in range(steps, 0, -1):
        ratio = max(alpha[j - 1] / alpha[j], floor)
        levels[j - 1] = math.sqrt((levels[j] ** 2 + 1) / ratio - 1)
    return torch.tensor(levels, dtype=torch.float32)


class Preconditioned(nn.Module):
    """Denoiser made of a raw network and one of the four preconditionings.

    State-dict names are those of the published checkpoints: the network's under ``model.``, and for "iddpm" the table
    of noise levels ``u``.

    Args:
        model: Raw network F(x, noise labels, class labels).
        kind: Which preconditioning the network was trained with.
        sigma_data: Standard deviation of the data ("edm" only).
        beta_d: Slope of the rate of the VP schedule ("vp" only).
        beta_min: Initial rate of the VP schedule ("vp" only).
        steps: Number M of discrete noise levels ("vp": of the labels; "iddpm": of the table).
    Attributes:
        sigma_min: Smallest noise level the network was trained on (0 for "edm").
        sigma_max: Largest one (infinite for "edm").
    Raises:
        ValueError: Unknown kind.
    """

    u: Tensor

    def __init__(
        self,
        model: nn.Module,
        kind: Kind = "edm",
        sigma_data: float = 0.5,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        steps: int = 1000,
    ) -> None:
        super().__init__()
        if kind not in ("edm", "vp", "ve", "iddpm"):
            raise ValueError(f"unknown preconditioning {kind!r}: use 'edm', 'vp', 've' or 'iddpm'")
        self.kind: Kind = kind
        self.sigma_data = sigma_data
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.steps = steps
        self.sigma_min, self.sigma_max = 0.0, math.inf
        if kind == "ve":
            self.sigma_min, self.sigma_max = 0.02, 100.0
        elif kind == "vp":
            self.sigma_min, self.sigma_max = self._vp_sigma(1e-5), self._vp_sigma(1.0)
        elif kind == "iddpm":
            levels = iddpm_noise_levels(steps)
            self.sigma_min, self.sigma_max = levels.tolist()[-2], levels.tolist()[0]
            self.register_buffer("u", levels)
        self.model = model

    def _vp_sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The four scalars at ``sigma``, in its shape and dtype, differentiable (save the index of "iddpm")."""
        one = torch.ones_like(sigma)
        if self.kind == "ve":
            return Coefficients(one, sigma, one, (0.5 * sigma).log())
        if self.kind == "edm":
            data = self.sigma_data
            total = sigma**2 + data**2
            return Coefficients(data**2 / total, sigma * data * total.rsqrt(), total.rsqrt(), sigma.log() / 4)
        scale = (sigma**2 + 1).rsqrt()
        if self.kind == "vp":
            # The positive root t of b_d t^2 / 2 + b_min t = log(1 + sigma^2).
            root = (self.beta_min**2 + 2 * self.beta_d * torch.log1p(sigma**2)).sqrt()
            return Coefficients(one, -sigma, scale, (self.steps - 1) * (root - self.beta_min) / self.beta_d)
        nearest = (sigma.detach()[..., None] - self.u.to(sigma.dtype)).abs().argmin(dim=-1)
        return Coefficients(one, -sigma, scale, (self.steps - 1 - nearest).to(sigma.dtype))

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoise.

        Args:
            x: Noisy images in EDM coordinates. Shape: (batch, channels, height, width).
            sigma: Noise level of each image. Shape: (batch,), (1,) or ().
            class_labels: One-hot rows, zero rows or None for "no class". Shape: (batch, classes).
        Returns:
            Estimate of x0, in the dtype of x (at least float32) though the network runs in its own. Shape: as x.
        """
        work = torch.promote_types(x.dtype, torch.float32)
        x = x.to(work)
        # Coefficients in the wider of the two precisions: sigma may come in float64 from a solver.
        sigma = sigma.to(torch.promote_types(sigma.dtype, work)).reshape(-1)
        c = self.coefficients(sigma)
        skip, out, scale = (value.to(work)[:, None, None, None] for value in (c.skip, c.out, c.input))
        dtype = next(self.model.parameters()).dtype
        raw = self.model((scale * x).to(dtype), c.noise.to(dtype), class_labels)
        # A network which also predicts a variance ("iddpm") has more output channels; the first ones are the mean.
        return skip * x + out * raw[:, : x.shape[1]].to(work)
