"""The U-Net of the consistency-model LSUN checkpoints, with their tensor names.

It is the unconditional network of the guided-diffusion line: an encoder (`input_blocks`) and a decoder
(`output_blocks`) of residual blocks, of which some attend and some change the resolution by two, around a
`middle_block`; each decoder block takes the matching encoder output as additional channels.

Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021, section 3; Song et al.,
"Consistency Models", ICML 2023, appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solverdistill.networks.embeddings import harmonic_embedding

Direction = Literal["up", "down"]
GROUPS = 32


def _conv(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class ResidualBlock(nn.Module):
    """Residual block conditioned on an embedding, optionally changing the resolution.

        h = conv(r(silu(norm(x)))) + linear(silu(emb))        r: 2x2 mean ("down"), repetition ("up") or nothing
        y = skip(r(x)) + conv(dropout(silu(norm(h))))

    Args:
        in_channels: Channels of x.
        out_channels: Channels of y.
        emb_channels: Width of the embedding.
        direction: "up" or "down" to change the resolution by two, None to keep it.
        dropout: Probability of zeroing an activation in training mode.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        direction: Direction | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.direction: Direction | None = direction
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, in_channels), nn.SiLU(), _conv(in_channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels), nn.SiLU(), nn.Dropout(dropout), _conv(out_channels, out_channels)
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else _conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Features. Shape: (batch, in_channels, h, w).
            emb: Embedding of the noise label. Shape: (batch, emb_channels).
        Returns:
            Features. Shape: (batch, out_channels, h', w').
        """
        norm, activation, conv = self.in_layers
        h = conv(self._resample(activation(norm(x)))) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(self._resample(x)) + self.out_layers(h)

    def _resample(self, x: Tensor) -> Tensor:
        if self.direction == "down":
            return F.avg_pool2d(x, 2)
        return x if self.direction is None else F.interpolate(x, scale_factor=2.0, mode="nearest")


class AttentionBlock(nn.Module):
    """Multi-head self-attention over the pixels, x + proj_out(attend(norm(x))).

    Args:
        channels: Channels of x.
        head_channels: Channels of a head.
    Raises:
        ValueError: `channels` is not a multiple of `head_channels`.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"attention over {channels} channels cannot have heads of {head_channels}")
        self.head_channels = head_channels
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = _conv(channels, 3 * channels, 1)
        self.proj_out = _conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend. Shape: (batch, channels, h, w) to the same."""
        # Channels are stored as all queries, all keys, all values, head after head.
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, -1, self.head_channels))
        query, key, value = qkv.mT.unbind(dim=1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(attended.mT.reshape(x.shape))


class Stage(nn.ModuleList):
    """Layers in a row; residual blocks among them are given the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply all layers. Shapes: those of the first layer's input and the last one's output."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class GuidedUNet(nn.Module):
    """Unconditional U-Net; the defaults are the LSUN networks for images of 256 pixels.

    Args:
        image_size: Height and width of the images; divisible by 2 ** (levels - 1).
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        model_channels: Channels of the first level before its multiplier; a multiple of 32.
        channel_mult: Multiplier of the channels, one per level.
        num_res_blocks: Residual blocks per encoder level; a decoder level has one more.
        attention_resolutions: Resolutions, in pixels, with self-attention.
        head_channels: Channels of an attention head.
        dropout: Dropout probability in the residual blocks, in training mode.
    Raises:
        ValueError: The resolution cannot be halved often enough, or the channels cannot be grouped.
    """

    def __init__(
        self,
        image_size: int = 256,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 256,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        head_channels: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if image_size % 2 ** (len(channel_mult) - 1):
            raise ValueError(f"image_size {image_size} cannot be halved {len(channel_mult) - 1} times")
        if model_channels % GROUPS:
            raise ValueError(f"model_channels {model_channels} is not a multiple of {GROUPS}")
        self.image_size, self.in_channels = image_size, in_channels
        self.model_channels, self.head_channels = model_channels, head_channels
        self._emb_channels, self._dropout = 4 * model_channels, dropout
        self._attending = [image_size >> level in attention_resolutions for level in range(len(channel_mult))]
        widths = [model_channels * mult for mult in channel_mult]
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, self._emb_channels),
            nn.SiLU(),
            nn.Linear(self._emb_channels, self._emb_channels),
        )
        self.input_blocks = nn.ModuleList([Stage([_conv(in_channels, widths[0])])])
        skips = self._build_encoder(widths, num_res_blocks)
        deepest = widths[-1]
        self.middle_block = Stage(
            [self._block(deepest, deepest), AttentionBlock(deepest, head_channels), self._block(deepest, deepest)]
        )
        self.output_blocks = nn.ModuleList()
        self._build_decoder(widths, num_res_blocks, skips)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), _conv(widths[0], out_channels))

    def _block(self, in_channels: int, out_channels: int, direction: Direction | None = None) -> ResidualBlock:
        return ResidualBlock(in_channels, out_channels, self._emb_channels, direction, self._dropout)

    def _attention(self, level: int, channels: int) -> list[nn.Module]:
        return [AttentionBlock(channels, self.head_channels)] if self._attending[level] else []

    def _build_encoder(self, widths: Sequence[int], blocks: int) -> list[int]:
        """Fill `input_blocks` and return the channels of every output that the decoder will take back."""
        channels = widths[0]
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.input_blocks.append(Stage([self._block(channels, width), *self._attention(level, width)]))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage([self._block(channels, channels, "down")]))
                skips.append(channels)
        return skips

    def _build_decoder(self, widths: Sequence[int], blocks: int, skips: list[int]) -> None:
        """Fill `output_blocks`, consuming `skips` from its end."""
        channels = widths[-1]
        for level in reversed(range(len(widths))):
            width = widths[level]
            for i in range(blocks + 1):
                stage = Stage([self._block(channels + skips.pop(), width), *self._attention(level, width)])
                channels = width
                if level and i == blocks:
                    stage.append(self._block(channels, channels, "up"))
                self.output_blocks.append(stage)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: Scaled noisy images. Shape: (batch, in_channels, image_size, image_size).
            times: Noise labels. Shape: (batch,).
        Returns:
            Raw prediction. Shape: (batch, out_channels, image_size, image_size).
        """
        emb = self.time_embed(harmonic_embedding(times, self.model_channels))
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)
