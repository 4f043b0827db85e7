"""What the tiny random pipelines of the tests share: seeded networks, embeddings, noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SIZE, BATCH, GUIDANCE = 8, 2, 3.0


@dataclass
class Case:
    """A pipeline, the network behind it as a function of (x, timestep), and how it is called.

    Args:
        pipe: The pipeline.
        network: Guided network, without the pipeline.
        noise: What the pipeline starts from.
        call: Runs the pipeline and returns its latents.
        kind: Prediction type.
    """

    pipe: Any
    network: Callable[[Tensor, Tensor], Tensor]
    noise: Tensor
    call: Callable[[], Tensor]
    kind: str = "epsilon"


def seeded(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    """A network with seeded weights, none of them zero by initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
        for weight in module.parameters():
            if bool((weight == 0).all()):
                torch.nn.init.normal_(weight, std=0.05)
    return module.eval().requires_grad_(False).to(dtype)


def tiny_vae(dtype: torch.dtype, channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return seeded(
        lambda: AutoencoderKL(
            block_out_channels=(4,), latent_channels=channels, norm_num_groups=2, sample_size=SIZE, shift_factor=0.1
        ),
        dtype,
    )


def guided(network: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor, Tensor], Tensor]:
    def call(x: Tensor, timestep: Tensor) -> Tensor:
        null, conditional = network(torch.cat([x, x]), timestep)
        return null + GUIDANCE * (conditional - null)

    return call


def start_noise(dtype: torch.dtype, *shape: int) -> Tensor:
    """The same noise in every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def embeddings(dtype: torch.dtype, length: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    positive, negative = (torch.randn(BATCH, length, width, generator=generator).to(dtype) for _ in range(2))
    return positive, negative
