"""Relativistic adversarial losses, and discriminators for them.

A discriminator D scores images. Real and generated images are compared in pairs (Huang et al., "The GAN is dead; long
live the GAN! A Modern GAN Baseline", NeurIPS 2024, Eq. 2-3), per sample::

    L_G = softplus(-(D(fake) - D(real)))
    L_D = softplus(-(D(real) - D(fake))) + gamma / 2 (R1 + R2)
    R1  = |grad_x D(real)|^2,    R2 = |grad_x D(fake)|^2         summed over the pixels

GAS trains a student with ``distance + weight L_G``: real images are the teacher's, L_G pairs student and teacher images
of the same noise, L_D takes student images of fresh noise, gamma = 0.2, and Adam at 1e-5 moves D before L_G is formed.
Reference: Oganov et al., "GAS", ICLR 2026, Eq. 15-17.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Score = Callable[[Tensor], Tensor]
GAMMA = 0.2
SLOPE = 0.2  # of the leaky ReLU


class DiscriminatorLoss(NamedTuple):
    """Loss of the discriminator and its parts, each per sample, shape (batch,)."""

    total: Tensor
    adversarial: Tensor
    r1: Tensor
    r2: Tensor


def generator_loss(discriminator: Score, fake: Tensor, real: Tensor) -> Tensor:
    """softplus(D(real) - D(fake)), differentiable in `fake`; the score of `real` is a constant. Shape: (batch,)."""
    with torch.no_grad():
        wanted = discriminator(real)
    return F.softplus(wanted - discriminator(fake)).flatten(1).sum(1)


def discriminator_loss(discriminator: Score, fake: Tensor, real: Tensor, gamma: float = GAMMA) -> DiscriminatorLoss:
    """Relativistic loss with both gradient penalties; images are taken as constants.

    Args:
        discriminator: Maps images (batch, ...) to scores (batch, 1).
        fake: Student images.
        real: Teacher images. Shape as fake.
        gamma: Weight of the penalties; 0 leaves them out.
    """
    fake, real = (x.detach().requires_grad_(gamma > 0) for x in (fake, real))
    score_fake, score_real = discriminator(fake), discriminator(real)
    adversarial = F.softplus(score_fake - score_real).flatten(1).sum(1)
    if gamma == 0:
        zero = torch.zeros_like(adversarial)
        return DiscriminatorLoss(adversarial, adversarial, zero, zero)
    r1, r2 = gradient_penalty(score_real, real), gradient_penalty(score_fake, fake)
    return DiscriminatorLoss(adversarial + gamma / 2 * (r1 + r2), adversarial, r1, r2)


def gradient_penalty(score: Tensor, x: Tensor) -> Tensor:
    """|grad_x score|^2 of every sample, differentiable in the discriminator. Shape: (batch,)."""
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)


class _BiasedActivation(nn.Module):
    """Leaky ReLU of x + bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias, SLOPE)


def _conv(inputs: int, outputs: int, size: int = 1, groups: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """Convolution without bias, weights N(0, gain^2 / fan_in)."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    nn.init.normal_(conv.weight, std=gain / (inputs // groups * size**2) ** 0.5 if gain else 0.0)
    return conv


class _Residual(nn.Sequential):
    """x + 1x1 . act . grouped 3x3 . act . 1x1; starts as the identity, its last convolution being zero."""

    def __init__(self, channels: int, groups: int, gain: float) -> None:
        wide = 2 * channels
        super().__init__(
            _conv(channels, wide, gain=gain),
            _BiasedActivation(wide),
            _conv(wide, wide, 3, groups, gain),
            _BiasedActivation(wide),
            _conv(wide, channels, gain=0.0),
        )

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class _Halve(nn.Module):
    """Low-pass [1, 2, 1] and every second pixel, then a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        tap = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", tap[:, None] * tap, persistent=False)
        self.widen = _conv(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3)  # pyright: ignore[reportCallIssue]
        return self.widen(F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1]))


class Discriminator(nn.Module):
    """Convolutional critic of R3GAN: no normalisation, grouped convolutions, one stage per resolution.

    Stages of residual blocks at falling resolution, then a depth-wise convolution over what remains of the image and a
    linear layer. Residual branches start with gain L^(-1/4) per convolution for L blocks in all.

    Args:
        shape: Channels, height and width of an image.
        widths: Channels of every stage, finest first; the image is halved between stages.
        groups: Groups of the 3x3 convolutions of every stage.
        blocks: Residual blocks per stage.
    Raises:
        ValueError: the image is too small to be halved that often.
    """

    def __init__(
        self, shape: tuple[int, int, int], widths: tuple[int, ...], groups: tuple[int, ...], blocks: int = 2
    ) -> None:
        super().__init__()
        size = min(shape[1:])
        if len(widths) != len(groups) or size < 2 ** (len(widths) - 1):
            raise ValueError(
                f"a discriminator of {len(widths)} stages needs as many groups, not {len(groups)}, and images of at "
                f"least {2 ** (len(widths) - 1)} pixels, not {tuple(shape[1:])}"
            )
        gain = (2 / (1 + SLOPE**2)) ** 0.5 * (len(widths) * blocks) ** -0.25
        layers: list[nn.Module] = [_conv(shape[0], widths[0])]
        height, width = shape[1:]
        for i, (channels, split) in enumerate(zip(widths, groups, strict=True)):
            if i > 0:
                layers.append(_Halve(widths[i - 1], channels))
                height, width = (height + 1) // 2, (width + 1) // 2
            layers += [_Residual(channels, split, gain) for _ in range(blocks)]
        self.trunk = nn.Sequential(*layers)
        self.basis = nn.Conv2d(widths[-1], widths[-1], (height, width), groups=widths[-1], bias=False)
        self.score = nn.Linear(widths[-1], 1, bias=False)
        nn.init.normal_(self.basis.weight, std=(height * width) ** -0.5)
        nn.init.normal_(self.score.weight, std=widths[-1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Score of every image. Shape: (batch, 1)."""
        return self.score(self.basis(self.trunk(x)).flatten(1))


def paper_discriminator(shape: tuple[int, int, int] = (3, 64, 64)) -> Discriminator:
    """The discriminator of GAS for images or latents: stages from the full resolution down to 4 pixels.

    At 64 pixels five stages of width 384, 768, 768, 768, 768, which is 22.38 M parameters for 3 channels. Below 64 the
    last stages are left out; above it stages of half, a quarter, ... of 384 go in front.

    Raises:
        ValueError: the image is not square, or its side is not a power of two of at least 32.
    """
    side = shape[1]
    if shape[1] != shape[2] or side < 32 or side & (side - 1):
        sizes = f"{shape[1]} x {shape[2]}"
        raise ValueError(f"the paper's discriminator takes square images of 32, 64, 128, ... pixels, not {sizes}")
    stages = side.bit_length() - 2
    widths = [384 >> i for i in range(stages - 5, 0, -1)] + [384, 768, 768, 768, 768]
    widths = widths[:stages]
    return Discriminator(shape, tuple(widths), tuple(width // 8 for width in widths))


def small_discriminator(shape: tuple[int, int, int], width: int = 32) -> Discriminator:
    """A discriminator for small images (8 x 8 digits, 28 x 28): stages down to 4 to 7 pixels, widths doubling."""
    side, stages = min(shape[1:]), 1
    while side >= 8:
        side, stages = (side + 1) // 2, stages + 1
    widths = tuple(width * 2**i for i in range(stages))
    return Discriminator(shape, widths, tuple(w // 8 for w in widths), blocks=1)
