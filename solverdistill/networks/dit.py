"""The diffusion transformer of DiT and SiT, with the tensor names of the published checkpoints.

An image (here a latent) is cut into square patches; each patch becomes a token. A token passes through blocks of
self-attention and of a two-layer perceptron whose normalisations are scaled and shifted, and whose results are gated,
by numbers computed from the sum c of the embeddings of time and class ("adaLN-Zero"):

    h <- h + g_1 attend(n(h) (1 + s_1) + b_1)         n: layer normalisation without weights
    h <- h + g_2 mlp(n(h) (1 + s_2) + b_2)            (b_1, s_1, g_1, b_2, s_2, g_2) = W silu(c) + bias

DiT and SiT share this network and every tensor name; they differ in what time and output mean, which is the teacher's
business.

Reference: Peebles, Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, section 3; Ma et al., "SiT: Exploring
Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers", ECCV 2024.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solverdistill.networks.embeddings import harmonic_embedding

TIME_CHANNELS = 256


def position_embedding(channels: int, side: int) -> Tensor:
    """Fixed embedding of the cells of a square grid: sines and cosines of the column, then those of the row.

    Args:
        channels: Width, divisible by 4.
        side: Cells per side.
    Returns:
        float32, cells in row-major order. Shape: (1, side * side, channels).
    """
    quarter = channels // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1)[None].float()


class PatchEmbedding(nn.Module):
    """Square patches of an image as tokens, in row-major order."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Embed. Shape: (batch, channels, side, side) to (batch, tokens, width)."""
        return self.proj(x).flatten(2).mT


class TimeEmbedding(nn.Module):
    """Two-layer perceptron on the harmonic embedding of the network's time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        """Embed. Shape: (batch,) to (batch, width)."""
        return self.mlp(harmonic_embedding(times, TIME_CHANNELS))


class LabelEmbedding(nn.Module):
    """Table of classes whose last row, number `num_classes`, stands for no class."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up; negative labels take the null row. Shape: (batch,) to (batch, width)."""
        null = self.embedding_table.num_embeddings - 1
        return self.embedding_table(torch.where(labels < 0, null, labels))


class Attention(nn.Module):
    """Multi-head self-attention over the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Attend. Shape: (batch, tokens, width) to the same."""
        # Stored as queries, keys, values of all heads, head after head.
        query, key, value = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Linear, GELU (tanh approximation), linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        """Apply to every token. Shape: (batch, tokens, width) to the same."""
        return self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


def _modulation(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """One transformer block, as in the module docstring."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Perceptron(width, hidden)
        self.adaLN_modulation = _modulation(width, 6)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Apply the block. Shapes: (batch, tokens, width) and (batch, width) to (batch, tokens, width)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(condition).chunk(6, dim=1)
        h = h + gate_1[:, None] * self.attn(_modulate(h, shift_1, scale_1))
        return h + gate_2[:, None] * self.mlp(_modulate(h, shift_2, scale_2))


class FinalLayer(nn.Module):
    """Modulated normalisation and the linear map from a token to the pixels of its patch."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Apply. Shapes: (batch, tokens, width) and (batch, width) to (batch, tokens, outputs)."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        return self.linear(_modulate(h, shift, scale))


class DiT(nn.Module):
    """Diffusion transformer; the defaults are DiT-XL/2 and SiT-XL/2 for images of 256 pixels (latents of 32).

    Args:
        input_size: Height and width of the input.
        patch_size: Height and width of a patch.
        in_channels: Channels of the input.
        hidden_size: Width of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the perceptrons in units of `hidden_size`.
        num_classes: Number of classes; a label of -1 means none.
        learn_sigma: The output has twice the channels of the input: the second half parametrises a variance.
    Raises:
        ValueError: `input_size` is no multiple of `patch_size`, or `hidden_size` none of 4 and of `num_heads`.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"input_size {input_size} is not a multiple of patch_size {patch_size}")
        if hidden_size % math.lcm(4, num_heads):
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of 4 and of num_heads {num_heads}")
        self.patch_size, self.side = patch_size, input_size // patch_size
        self.out_channels = (2 if learn_sigma else 1) * in_channels
        self.x_embedder = PatchEmbedding(in_channels, patch_size, hidden_size)
        self.t_embedder = TimeEmbedding(hidden_size)
        self.y_embedder = LabelEmbedding(num_classes, hidden_size)
        self.pos_embed = nn.Parameter(torch.empty(1, self.side**2, hidden_size), requires_grad=False)
        hidden = int(hidden_size * mlp_ratio)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, hidden) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)
        self.reset_positions()

    @torch.no_grad()
    def reset_positions(self) -> None:
        """Write the fixed embedding of the positions, which checkpoints carry along."""
        self.pos_embed.copy_(position_embedding(self.pos_embed.shape[2], self.side))

    def forward(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: Noisy latents. Shape: (batch, in_channels, input_size, input_size).
            times: The network's own time. Shape: (batch,).
            labels: Classes, int64, -1 for none. Shape: (batch,).
        Returns:
            Prediction. Shape: (batch, out_channels, input_size, input_size).
        """
        h = self.x_embedder(x) + self.pos_embed
        condition = self.t_embedder(times) + self.y_embedder(labels)
        for block in self.blocks:
            h = block(h, condition)
        return self._assemble(self.final_layer(h, condition))

    def _assemble(self, tokens: Tensor) -> Tensor:
        """Put patches back in their places. Shape: (batch, side^2, patch^2 channels) to (batch, channels, ...)."""
        side, patch = self.side, self.patch_size
        grid = tokens.unflatten(2, (patch, patch, self.out_channels)).unflatten(1, (side, side))
        size = side * patch
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.out_channels, size, size)
