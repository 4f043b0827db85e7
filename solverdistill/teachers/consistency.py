"""The EDM teachers of the consistency-models release: LSUN bedrooms and cats at 256 pixels.

They are the U-Nets `solverdistill.networks.GuidedUNet` behind the EDM preconditioning with sigma_data d = 0.5, in EDM
coordinates y = x / alpha, s = sigma / alpha, but with a noise label a thousand times larger:

    denoised = d^2 / (s^2 + d^2) y + s d / sqrt(s^2 + d^2) F(y / sqrt(s^2 + d^2), 250 ln(s + 1e-44))

The constant in the logarithm, theirs too, keeps the label finite at s = 0.

Reference: Song et al., "Consistency Models", ICML 2023, appendix C; Karras et al., "Elucidating the Design Space of
Diffusion-Based Generative Models", NeurIPS 2022, table 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher, per_sample
from solverdistill.networks.guided_unet import GuidedUNet
from solverdistill.noise.paths import EDM
from solverdistill.teachers.checkpoints.loading import load_checkpoint
from solverdistill.teachers.running import FrozenNetwork, Running

SIGMA_DATA = 0.5


def consistency_checkpoint(
    name: str = "cm_bedroom256",
    weights: str | os.PathLike[str] | None = None,
    network: Mapping[str, Any] | None = None,
    running: Running | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> ConsistencyTeacher:
    """Load an EDM network of the consistency-models release, "cm_bedroom256" or "cm_cat256", as a teacher.

    `network` has arguments of `GuidedUNet`; otherwise arguments and errors are as of `sit.dit_checkpoint`.
    """
    running = Running.of(running)
    return ConsistencyTeacher(*load_checkpoint(name, "GuidedUNet", weights, network, seed), running)


class ConsistencyTeacher(Teacher):
    """A network of that release as a denoiser; see the module docstring.

    Args:
        network: The U-Net.
        name: Name of the teacher.
        running: How the network is run.
    """

    def __init__(self, network: GuidedUNet, name: str, running: Running | Mapping[str, Any] | None = None) -> None:
        super().__init__(name, (network.in_channels, network.image_size, network.image_size), EDM(), (80.0, 0.002))
        self.net = FrozenNetwork(network, running)
        self.freeze()

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        dtype = next(self.net.parameters()).dtype
        sigma = sigma.double() / alpha.double()
        y = x / per_sample(alpha, x).to(x.dtype)
        total = sigma**2 + SIGMA_DATA**2
        skip, out, scale = SIGMA_DATA**2 / total, SIGMA_DATA * sigma * total.rsqrt(), total.rsqrt()
        skip, out, scale = (per_sample(v, x).to(x.dtype) for v in (skip, out, scale))
        label = 250 * torch.log(sigma + 1e-44)
        raw = self.net((scale * y).to(dtype), label.to(dtype)).to(x.dtype)
        return skip * y + out * raw
