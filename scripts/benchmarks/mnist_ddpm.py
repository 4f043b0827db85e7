"""The network of a published MNIST diffusion model, for benchmarks; its weights are downloaded by whoever runs them.

A DDPM that predicts eps: x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps with linear betas of index i = 0 .. 1000, images
in [-0.5, 0.5], and time i / 1000 given to a continuous embedding. As a teacher:

    model=callable model.target=scripts.benchmarks.mnist_ddpm.load 'model.arguments={weights:model.pth}'
    model.prediction=eps model.shape=[1,28,28] model.time_scale=0.001
    model.noise_schedule='{name:discrete,beta_schedule:linear,beta_start:1e-4,beta_end:0.02,steps:1001}'

Weights: https://github.com/Yichizz/hot_vs_cold_diffusion, model/ddpm_mnist_starter.pth (MIT licence).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

CHANNELS = (1, 16, 32, 32, 16)
SIDE = 28


class Block(nn.Module):
    """Convolution, normalisation over channels and pixels, GELU; the image keeps its size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        norm = nn.LayerNorm([outputs, SIDE, SIDE])
        self.net = nn.Sequential(nn.Conv2d(inputs, outputs, 7, padding=3), norm, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class EpsNetwork(nn.Module):
    """Four convolution blocks and a convolution; the time is added to the first block's output."""

    frequencies: Tensor

    def __init__(self, frequencies: int = 16, hidden: int = 128) -> None:
        super().__init__()
        blocks: list[nn.Module] = [Block(*ends) for ends in zip(CHANNELS, CHANNELS[1:], strict=False)]
        self.blocks = nn.ModuleList([*blocks, nn.Conv2d(CHANNELS[-1], CHANNELS[0], 3, padding=1)])
        sizes = (2 * frequencies, hidden, hidden, hidden)
        layers: list[nn.Module] = []
        for ends in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(*ends), nn.GELU()]
        self.time_embed = nn.Sequential(*layers, nn.Linear(hidden, CHANNELS[1]))
        self.register_buffer("frequencies", torch.zeros(frequencies))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        phases = time[:, None] * self.frequencies
        embedding = self.time_embed(torch.cat([phases.sin(), phases.cos() - 1], dim=1))
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 0:
                x = x + embedding[:, :, None, None]
        return x


class MnistDDPM(nn.Module):
    """The network with the buffers of its noise schedule, under the names of the published file.

    Buffers:
        beta_t: The betas of index 0 .. 1000. Shape: (1001,).
        alpha_t: Their cumulative products abar = cumprod(1 - beta). Shape: (1001,).
    """

    beta_t: Tensor
    alpha_t: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gt = EpsNetwork()
        self.register_buffer("beta_t", torch.linspace(1e-4, 0.02, 1001))
        self.register_buffer("alpha_t", torch.cumprod(1 - self.beta_t, dim=0))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Predict eps.

        Args:
            x: Noisy images. Shape: (batch, 1, 28, 28).
            time: i / 1000 of the schedule's index i; any number. Shape: (batch,).
        """
        return self.gt(x, time)


def load(weights: str) -> MnistDDPM:
    """Load the network from its published file, in evaluation mode.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file's tensors are not those of this network.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(f"network weights {weights} do not exist; the file is named in {__name__}")
    network = MnistDDPM()
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise ValueError(f"network weights {weights} are not those of the MNIST DDPM: {error}") from None
    return network.eval().requires_grad_(False)
