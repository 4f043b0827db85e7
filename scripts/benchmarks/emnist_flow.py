"""The networks of a published latent flow model of EMNIST letters and digits, for benchmarks.

A velocity network on 1 x 7 x 7 latents, 47 classes, and the convolutional decoder that turns a latent into an image in
[0, 1]. Its time runs from noise (0) to data (1): x_t = t x_1 + (1 - t) noise, velocity = x_1 - noise. A class is given
as a one-hot row, none as a row of zeros. As a teacher:

    model=callable model.target=scripts.benchmarks.emnist_flow.load 'model.arguments={weights:flow.pth}'
    model.prediction=flow model.noise_schedule=flow model.time=reversed model.shape=[1,7,7]
    model.num_classes=47 model.condition=onehot

Weights: https://github.com/sofia-dominguezc/MNIST-diffusion, parameters/EMNIST (MIT licence).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT = (1, 7, 7)
CLASSES = 47


class Attention(nn.Module):
    """Multi-head self-attention over the pixels of an image."""

    def __init__(self, channels: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, width = heads, heads * head_dim
        self.q_proj = nn.Linear(channels, width)
        self.k_proj = nn.Linear(channels, width)
        self.v_proj = nn.Linear(channels, width)
        self.out_proj = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        q, k, v = (
            project(pixels).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out_proj(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


class DepthwiseConv(nn.Module):
    """1 x 1 convolution to `mult` times the channels, depthwise 3 x 3 convolution, and back."""

    def __init__(self, channels: int, mult: int) -> None:
        super().__init__()
        wide = mult * channels
        depthwise = nn.Conv2d(wide, wide, 3, padding=1, padding_mode="reflect", groups=wide)
        self.network = nn.Sequential(
            nn.Conv2d(channels, wide, 1), nn.GELU(), depthwise, nn.GELU(), nn.Conv2d(wide, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class Conformer(nn.Module):
    """Residual attention, then residual convolution."""

    def __init__(self, channels: int, mult: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.attn = Attention(channels, heads, head_dim)
        self.conv = DepthwiseConv(channels, mult)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.conv(x)


class LatentFlow(nn.Module):
    """Velocity of a latent: convolutions around one conformer; time and class come in as two more channels."""

    nums: Tensor

    def __init__(self) -> None:
        super().__init__()
        size = math.prod(LATENT)
        self.register_buffer("nums", torch.linspace(0, 1, CLASSES))
        self.log_scalar = nn.Parameter(torch.zeros(1))
        self.network = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2),
            nn.GELU(),
            Conformer(32, mult=5, heads=3, head_dim=8),
            nn.GELU(),
            nn.Conv2d(32, 1, 5, padding=2),
        )
        self.yemb = nn.Linear(CLASSES, size, bias=False)
        self.temb = nn.Linear(CLASSES, size)

    def forward(self, x: Tensor, time: Tensor, onehot: Tensor | None = None) -> Tensor:
        """Predict the velocity x_1 - noise.

        Args:
            x: Noisy latents. Shape: (batch, 1, 7, 7).
            time: 0 at noise, 1 at data. Shape: (batch,).
            onehot: One-hot class, zeros for none. Shape: (batch, 47).
        """
        times = self.temb(torch.exp((time[:, None] - self.nums) ** 2 / self.log_scalar.exp()))
        classes = torch.zeros_like(times) if onehot is None else self.yemb(onehot)
        return self.network(torch.cat([x, times.view_as(x), classes.view_as(x)], dim=1))


def make_decoder() -> nn.Sequential:
    """The decoder with random weights: latents (batch, 1, 7, 7) to images (batch, 1, 28, 28)."""
    conformers = [Conformer(48, mult=5, heads=4, head_dim=8) for _ in range(3)]
    return nn.Sequential(
        nn.Conv2d(1, 48, 1),
        *conformers,
        nn.Upsample(scale_factor=2),
        nn.Conv2d(48, 32, 3, padding=1, padding_mode="reflect"),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 1, 5, padding=2),
    )


def load(weights: str) -> LatentFlow:
    """Load the velocity network from its published file, in evaluation mode.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file's tensors are not those of this network.
    """
    network = LatentFlow()
    fill(network, read_tensors(weights), weights)
    return network


def load_decoder(weights: str) -> nn.Sequential:
    """Load the decoder from the published file of the autoencoder; raises as `load` does."""
    tensors = read_tensors(weights)
    own = {key.removeprefix("decoder."): value for key, value in tensors.items() if key.startswith("decoder.")}
    decoder = make_decoder()
    fill(decoder, own, weights)
    return decoder


def read_tensors(weights: str) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed."""
    if not Path(weights).is_file():
        raise FileNotFoundError(f"network weights {weights} do not exist; the files are named in {__name__}")
    return torch.load(weights, map_location="cpu", weights_only=True)


def fill(network: nn.Module, tensors: dict[str, Tensor], weights: str) -> None:
    """Load the tensors of a file into a network and freeze it."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"network weights {weights} are not those of {type(network).__name__}: {error}") from None
    network.eval().requires_grad_(False)
