"""The ADM network, with the tensor names of the published EDM checkpoints.

A U-Net of residual blocks in which the embedding of noise level and class scales and shifts the normalised features,
attention has several heads of 64 channels, and skip connections are not rescaled. An encoder level holds one
resampling block (level 0: a convolution) and ``num_blocks`` residual blocks; a decoder level one resampling block
(deepest level: two blocks, the first attending) and ``num_blocks + 1`` residual blocks, each of which takes the
matching encoder output as additional channels. Modules live in ``enc`` and ``dec`` under names such as
``16x16_block0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solverdistill.networks.blocks import Direction, PositionalEmbedding, Resample, ResampledConv2d, attend, group_norm

BOX = (1, 1)
HEAD_CHANNELS = 64
EPS = 1e-5


def zero_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """Size-preserving convolution that starts at zero."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ScaleShiftBlock(nn.Module):
    """Residual block whose normalised features are scaled and shifted by the embedding.

        (g, b) = affine(emb)
        h = conv1(dropout(silu(norm1(conv0(silu(norm0(x)))) (1 + g) + b)))
        y = skip(x) + h                        [and, with attention,  y <- y + proj(attend(norm2(y)))]

    Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021, section 3 (adaptive
    group normalisation).

    Args:
        in_channels: Channels of x.
        out_channels: Channels of y.
        emb_channels: Width of the embedding.
        direction: "up" or "down" to change the resolution by two, None to keep it.
        attention: Add self-attention over the pixels, with heads of 64 channels.
        dropout: Probability of zeroing an activation before the second convolution.
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
    ) -> None:
        super().__init__()
        self.norm0 = group_norm(in_channels, EPS)
        if direction is None:
            self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        else:
            self.conv0 = ResampledConv2d(in_channels, out_channels, 3, direction, BOX)
        self.affine = nn.Linear(emb_channels, 2 * out_channels)
        self.norm1 = group_norm(out_channels, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = zero_conv(out_channels, out_channels, 3)
        self.skip = self._skip(in_channels, out_channels, direction)
        self.heads = out_channels // HEAD_CHANNELS if attention else 0
        if self.heads:
            self.norm2 = group_norm(out_channels, EPS)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = zero_conv(out_channels, out_channels, 1)

    @staticmethod
    def _skip(in_channels: int, out_channels: int, direction: Direction | None) -> nn.Module:
        if in_channels != out_channels:
            if direction is None:
                return nn.Conv2d(in_channels, out_channels, 1)
            return ResampledConv2d(in_channels, out_channels, 1, direction, BOX)
        return nn.Identity() if direction is None else Resample(direction, BOX)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Features. Shape: (batch, in_channels, h, w).
            emb: Embedding of noise level and class. Shape: (batch or 1, emb_channels).
        Returns:
            Features. Shape: (batch, out_channels, h', w').
        """
        h = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        y = self.skip(x) + self.conv1(self.dropout(h))
        if self.heads:
            y = y + self.proj(attend(self.qkv(self.norm2(y)), self.heads))
        return y


class DhariwalUNet(nn.Module):
    """The ADM U-Net as configured by Karras et al. 2022.

    Args:
        img_resolution: Height and width of the images; divisible by 2 ** (levels - 1).
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        label_dim: Number of classes; 0 for an unconditional network.
        augment_dim: Width of the augmentation labels seen in training. Only reserves the weight ``map_augment``: here
            images are never augmented, for which the label is zero and contributes nothing.
        model_channels: Channels of the first level before its multiplier.
        channel_mult: Multiplier of the channels, one per level.
        channel_mult_emb: Multiplier of the width of the embedding.
        num_blocks: Residual blocks per encoder level.
        attn_resolutions: Resolutions with self-attention.
        dropout: Dropout probability in the residual blocks.
        label_dropout: Probability, in training mode, of zeroing the class label of a sample.
    Raises:
        ValueError: The resolution cannot be halved often enough.
    References:
        Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021; Karras et al., "Elucidating
        the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, table 7.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if img_resolution % 2 ** (len(channel_mult) - 1):
            raise ValueError(f"img_resolution {img_resolution} cannot be halved {len(channel_mult) - 1} times")
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.label_dim = label_dim
        self.label_dropout = label_dropout
        self.num_blocks = num_blocks
        self._attn_resolutions = frozenset(attn_resolutions)
        self._emb_channels = emb_channels = model_channels * channel_mult_emb
        self._dropout = dropout

        self.map_noise = PositionalEmbedding(model_channels, endpoint=False, cosines_first=True)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, model_channels, bias=False)
            nn.init.zeros_(self.map_augment.weight)
        self.map_layer0 = nn.Linear(model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, emb_channels, bias=False)
            nn.init.normal_(self.map_label.weight)

        levels = [(img_resolution >> level, model_channels * mult) for level, mult in enumerate(channel_mult)]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self._build_decoder(levels, self._build_encoder(levels))
        self.out_norm = group_norm(levels[0][1], EPS)
        self.out_conv = zero_conv(levels[0][1], out_channels, 3)

    def _block(self, in_channels: int, out_channels: int, **options: Any) -> ScaleShiftBlock:
        return ScaleShiftBlock(in_channels, out_channels, self._emb_channels, dropout=self._dropout, **options)

    def _build_encoder(self, levels: Sequence[tuple[int, int]]) -> list[int]:
        """Fill ``enc`` and return the channels of every output that the decoder will take back."""
        skips: list[int] = []
        channels = levels[0][1]
        for level, (res, width) in enumerate(levels):
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = nn.Conv2d(self.in_channels, channels, 3, padding=1)
            else:
                self.enc[f"{res}x{res}_down"] = self._block(channels, channels, direction="down")
            skips.append(channels)
            for i in range(self.num_blocks):
                attention = res in self._attn_resolutions
                self.enc[f"{res}x{res}_block{i}"] = self._block(channels, width, attention=attention)
                channels = width
                skips.append(channels)
        return skips

    def _build_decoder(self, levels: Sequence[tuple[int, int]], skips: list[int]) -> None:
        """Fill ``dec``, consuming ``skips`` from its end."""
        channels = levels[-1][1]
        for res, width in reversed(levels):
            if (res, width) == levels[-1]:
                self.dec[f"{res}x{res}_in0"] = self._block(channels, channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = self._block(channels, channels)
            else:
                self.dec[f"{res}x{res}_up"] = self._block(channels, channels, direction="up")
            for i in range(self.num_blocks + 1):
                attention = res in self._attn_resolutions
                self.dec[f"{res}x{res}_block{i}"] = self._block(channels + skips.pop(), width, attention=attention)
                channels = width

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Evaluate the raw network F.

        Args:
            x: Scaled noisy images. Shape: (batch, in_channels, img_resolution, img_resolution).
            noise_labels: Label of the noise level of each image. Shape: (batch,) or (1,).
            class_labels: One-hot rows; zero rows, or None, for "no class". Shape: (batch, label_dim) or
                (1, label_dim). Ignored by an unconditional network.
        Returns:
            Raw output. Shape: (batch, out_channels, img_resolution, img_resolution).
        """
        emb = self._embed(noise_labels.to(x.dtype), class_labels, x.shape[0])
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, ScaleShiftBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))

    def _embed(self, noise_labels: Tensor, class_labels: Tensor | None, batch: int) -> Tensor:
        """Embedding of noise level and class. Shape: (batch or 1, emb_channels)."""
        emb = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise_labels))))
        if self.label_dim and class_labels is not None:
            labels = class_labels.to(emb.dtype)
            if self.training and self.label_dropout:
                labels = labels * (torch.rand(batch, 1, device=emb.device) >= self.label_dropout)
            emb = emb + self.map_label(labels)
        return F.silu(emb)
