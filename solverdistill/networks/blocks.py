"""Building blocks of the DDPM++, NCSN++ and ADM networks.

Attribute names (``norm0``, ``conv0``, ``affine``, ``resample_filter``, ...) are those found in the checkpoints released
with Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, so that such
files load with ``load_state_dict``; the implementation is independent of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Direction = Literal["up", "down"]
Layer = TypeVar("Layer", bound="nn.Linear | nn.Conv2d")

# Residual sums are multiplied by this so that the variance of activations does not grow with depth.
RESIDUAL_SCALE = math.sqrt(0.5)


def xavier(layer: Layer, gain: float = 1.0) -> Layer:
    """Initialise a linear or convolutional layer (Xavier-uniform weight, zero bias) and return it.

    Args:
        layer: Layer, with or without a bias.
        gain: Factor on the weight; 1e-5 makes a layer that starts as (almost) zero.
    """
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups of at least 4 channels each."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def separable_filter(taps: Sequence[float]) -> Tensor:
    """Two-dimensional low-pass filter, the outer product of ``taps`` normalised to sum one. Shape: (1, 1, k, k)."""
    line = torch.tensor(taps, dtype=torch.float32)
    return (torch.outer(line, line) / line.sum() ** 2)[None, None]


def resample(x: Tensor, filter2d: Tensor, direction: Direction, *, box: bool = False, pad: int | None = None) -> Tensor:
    """Halve or double the resolution of every channel with a low-pass filter.

    Args:
        x: Images. Shape: (batch, channels, height, width).
        filter2d: Filter of sum one. Shape: (1, 1, k, k), k even.
        direction: "down" filters and keeps every second pixel; "up" is its transpose times 4, which keeps the mean.
        box: The filter is the 2x2 box, for which pooling gives the same numbers faster.
        pad: Zero padding on each side; by default the one which makes the factor exactly two.
    Returns:
        Images of half or twice the height and width, if ``pad`` is not given.
    """
    if box and pad is None:
        return F.avg_pool2d(x, 2) if direction == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")
    channels = x.shape[1]
    kernel = filter2d.to(x.dtype).expand(channels, 1, -1, -1)
    pad = (filter2d.shape[-1] - 1) // 2 if pad is None else pad
    if direction == "down":
        return F.conv2d(x, kernel, stride=2, padding=pad, groups=channels)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=channels)


class Resample(nn.Module):
    """Change of resolution by two without weights; holds only the ``resample_filter`` buffer."""

    resample_filter: Tensor

    def __init__(self, direction: Direction, taps: Sequence[float]) -> None:
        super().__init__()
        self.direction: Direction = direction
        self.box = len(taps) == 2 and taps[0] == taps[1]
        self.register_buffer("resample_filter", separable_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        """Resample ``x``. Shape: (batch, channels, height, width)."""
        return resample(x, self.resample_filter, self.direction, box=self.box)


class ResampledConv2d(nn.Conv2d):
    """Convolution joined with a change of resolution by two.

    By default the low-pass filter comes first. With ``filter_last`` (downsampling only, as in the residual input
    pyramid of NCSN++) the convolution runs at full resolution with the padding of both operations, and the filter then
    runs without padding: the same linear map inside the image, another one at its border.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        direction: Direction,
        taps: Sequence[float],
        *,
        filter_last: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        if filter_last and direction != "down":
            raise ValueError("filter_last is defined for direction='down' only")
        self.direction: Direction = direction
        self.filter_last = filter_last
        self.box = len(taps) == 2 and taps[0] == taps[1]
        self.register_buffer("resample_filter", separable_filter(taps))

    def forward(self, input: Tensor) -> Tensor:
        """Resample and convolve. Shape: (batch, in_channels, h, w) to (batch, out_channels, h', w')."""
        if not self.filter_last:
            return super().forward(resample(input, self.resample_filter, self.direction, box=self.box))
        pad = self.kernel_size[0] // 2 + (self.resample_filter.shape[-1] - 1) // 2
        # The bias commutes with a filter of sum one that runs without padding.
        wide = F.conv2d(input, self.weight, self.bias, padding=pad)
        return resample(wide, self.resample_filter, "down", pad=0)


def conv(in_channels: int, out_channels: int, kernel_size: int, *, gain: float = 1.0) -> nn.Conv2d:
    """Size-preserving convolution with the initialisation of :func:`xavier`."""
    return xavier(nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2), gain)


class UNetBlock(nn.Module):
    """Residual block conditioned on an embedding, optionally resampling first and attending last.

        h = conv1(dropout(silu(norm1(conv0(silu(norm0(x))) + affine(emb)))))
        y = (skip(x) + h) / sqrt(2)            [and, with attention,  y <- (y + proj(attend(norm2(y)))) / sqrt(2)]

    Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021,
    appendix H (the BigGAN-type block of DDPM++ and NCSN++).

    Args:
        in_channels: Channels of x.
        out_channels: Channels of y.
        emb_channels: Width of the embedding.
        direction: "up" or "down" to change the resolution by two, None to keep it.
        attention: Add single-head self-attention over the pixels.
        dropout: Probability of zeroing an activation before the second convolution.
        taps: One-dimensional resampling filter.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        direction: Direction | None = None,
        attention: bool = False,
        dropout: float = 0.0,
        taps: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()

        def first_conv(kernel_size: int) -> nn.Conv2d:
            if direction is None:
                return conv(in_channels, out_channels, kernel_size)
            return xavier(ResampledConv2d(in_channels, out_channels, kernel_size, direction, taps))

        self.norm0 = group_norm(in_channels)
        self.conv0 = first_conv(3)
        self.affine = xavier(nn.Linear(emb_channels, out_channels))
        self.norm1 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = conv(out_channels, out_channels, 3, gain=1e-5)
        identity = direction is None and in_channels == out_channels
        self.skip = nn.Identity() if identity else first_conv(1)
        self.attention = attention
        if attention:
            self.norm2 = group_norm(out_channels)
            self.qkv = conv(out_channels, 3 * out_channels, 1, gain=math.sqrt(0.2))
            self.proj = conv(out_channels, out_channels, 1, gain=1e-5)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Features. Shape: (batch, in_channels, h, w).
            emb: Embedding of noise level and class. Shape: (batch or 1, emb_channels).
        Returns:
            Features. Shape: (batch, out_channels, h', w').
        """
        h = self.conv0(F.silu(self.norm0(x))) + self.affine(emb)[:, :, None, None]
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        y = (self.skip(x) + h) * RESIDUAL_SCALE
        if self.attention:
            y = (y + self.proj(attend(self.qkv(self.norm2(y))))) * RESIDUAL_SCALE
        return y


def attend(qkv: Tensor, heads: int = 1) -> Tensor:
    """Softmax attention among the pixels of each image.

    Args:
        qkv: Queries, keys and values, stored as a (q, k, v) triple per channel. Shape: (batch, 3 channels, h, w).
        heads: Number of heads, each of which has the same number of consecutive channels.
    Returns:
        Attended values. Shape: (batch, channels, h, w).
    """
    batch, triple, height, width = qkv.shape
    channels = triple // 3 // heads
    query, key, value = qkv.reshape(batch * heads, channels, 3, height * width).unbind(dim=2)
    wide = torch.promote_types(qkv.dtype, torch.float32)  # softmax overflows in half precision
    logits = torch.bmm(query.to(wide).mT, key.to(wide) * channels**-0.5)
    weights = logits.softmax(dim=-1).to(qkv.dtype)  # (batch, query pixel, key pixel)
    return torch.bmm(value, weights.mT).reshape(batch, triple // 3, height, width)


class PositionalEmbedding(nn.Module):
    """Sines and cosines of the label at frequencies that fall geometrically from 1 towards 1/10000.

    Args:
        channels: Width of the embedding.
        max_period: Inverse of the lowest frequency.
        endpoint: The lowest frequency is the last one (DDPM++) or the one after it (ADM).
        cosines_first: Order of the two halves.
    """

    def __init__(
        self, channels: int, max_period: float = 10000.0, endpoint: bool = True, cosines_first: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.max_period = channels, max_period
        self.endpoint, self.cosines_first = endpoint, cosines_first

    def forward(self, labels: Tensor) -> Tensor:
        """Embed. Shape: (batch,) to (batch, channels)."""
        half = self.channels // 2
        # float32 whatever the dtype of the labels: trained weights have seen these rounded frequencies.
        ramp = torch.arange(half, dtype=torch.float32, device=labels.device) / (half - self.endpoint)
        angle = torch.outer(labels, ((1 / self.max_period) ** ramp).to(labels.dtype))
        waves = (angle.cos(), angle.sin()) if self.cosines_first else (angle.sin(), angle.cos())
        return torch.cat(waves, dim=1)


class FourierEmbedding(nn.Module):
    """Sines and cosines of the label at fixed random frequencies, which are part of the state."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", scale * torch.randn(channels // 2))

    def forward(self, labels: Tensor) -> Tensor:
        """Embed. Shape: (batch,) to (batch, channels), sines before cosines."""
        angle = torch.outer(labels, (2 * math.pi * self.freqs).to(labels.dtype))
        return torch.cat([angle.sin(), angle.cos()], dim=1)
