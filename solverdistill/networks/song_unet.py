"""The DDPM++ and NCSN++ networks, with the tensor names of the published EDM checkpoints.

Both are U-Nets of residual blocks. An encoder level holds one resampling block (level 0: a convolution) and
``num_blocks`` residual blocks; a decoder level one resampling block (deepest level: two blocks, the first attending)
and ``num_blocks + 1`` residual blocks, each of which takes the matching encoder output as additional channels. NCSN++
adds *pyramids*: downsampled copies of the input join each encoder level, and/or the output is a sum over the decoder
levels. Modules live in ``enc`` and ``dec`` under names such as ``16x16_block0``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solverdistill.networks.blocks import (
    FourierEmbedding,
    PositionalEmbedding,
    Resample,
    ResampledConv2d,
    UNetBlock,
    conv,
    group_norm,
    xavier,
)


class SongUNet(nn.Module):
    """U-Net of Song et al. 2021 as configured by Karras et al. 2022.

    DDPM++ is the default configuration; NCSN++ is ``embedding_type="fourier"``, ``channel_mult_noise=2``,
    ``encoder_type="residual"``, ``resample_filter=(1, 3, 3, 1)``.

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
        embedding_type: "positional" (DDPM++) or "fourier" (NCSN++) embedding of the noise label.
        channel_mult_noise: Multiplier of the width of that embedding.
        encoder_type: Without input pyramid ("standard"), or with one added ("skip") or refined by
            convolutions ("residual").
        decoder_type: "skip" for an output pyramid.
        resample_filter: One-dimensional low-pass filter of every change of resolution.
    Raises:
        ValueError: An option is unknown, or the resolution cannot be halved often enough.
    References:
        Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021, appendix
        H; Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, table 7.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        if embedding_type not in ("positional", "fourier"):
            raise ValueError(f"unknown embedding_type {embedding_type!r}: use 'positional' or 'fourier'")
        if encoder_type not in ("standard", "skip", "residual"):
            raise ValueError(f"unknown encoder_type {encoder_type!r}: use 'standard', 'skip' or 'residual'")
        if decoder_type not in ("standard", "skip"):
            raise ValueError(f"unknown decoder_type {decoder_type!r}: use 'standard' or 'skip'")
        if img_resolution % 2 ** (len(channel_mult) - 1):
            raise ValueError(f"img_resolution {img_resolution} cannot be halved {len(channel_mult) - 1} times")
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.label_dim = label_dim
        self.label_dropout = label_dropout
        self.num_blocks = num_blocks
        self.encoder_type = encoder_type
        self.decoder_type = decoder_type
        self._resolutions = [img_resolution >> level for level in range(len(channel_mult))]
        self._attn_resolutions = frozenset(attn_resolutions)
        self._taps = tuple(resample_filter)
        self._emb_channels = model_channels * channel_mult_emb
        self._dropout = dropout

        noise_channels = model_channels * channel_mult_noise
        embedding = PositionalEmbedding if embedding_type == "positional" else FourierEmbedding
        self.map_noise = embedding(noise_channels)
        if label_dim:
            self.map_label = xavier(nn.Linear(label_dim, noise_channels))
        if augment_dim:
            self.map_augment = xavier(nn.Linear(augment_dim, noise_channels, bias=False))
        self.map_layer0 = xavier(nn.Linear(noise_channels, self._emb_channels))
        self.map_layer1 = xavier(nn.Linear(self._emb_channels, self._emb_channels))

        widths = [model_channels * mult for mult in channel_mult]
        self.enc = nn.ModuleDict()
        skips = self._build_encoder(model_channels, widths)
        self.dec = nn.ModuleDict()
        self._build_decoder(widths, skips)

    def _block(self, in_channels: int, out_channels: int, **options: Any) -> UNetBlock:
        return UNetBlock(
            in_channels, out_channels, self._emb_channels, dropout=self._dropout, taps=self._taps, **options
        )

    def _build_encoder(self, stem: int, widths: Sequence[int]) -> list[int]:
        """Fill ``enc`` and return the channels of every output that the decoder will take back."""
        skips: list[int] = []
        channels, pyramid = stem, self.in_channels
        for level, (res, width) in enumerate(zip(self._resolutions, widths, strict=True)):
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = conv(self.in_channels, channels, 3)
            else:
                self.enc[f"{res}x{res}_down"] = self._block(channels, channels, direction="down")
            if level and self.encoder_type == "skip":
                self.enc[f"{res}x{res}_aux_down"] = Resample("down", self._taps)
                self.enc[f"{res}x{res}_aux_skip"] = conv(pyramid, channels, 1)
            elif level and self.encoder_type == "residual":
                refine = ResampledConv2d(pyramid, channels, 3, "down", self._taps, filter_last=True)
                self.enc[f"{res}x{res}_aux_residual"] = xavier(refine)
                pyramid = channels
            skips.append(channels)
            for i in range(self.num_blocks):
                attention = res in self._attn_resolutions
                self.enc[f"{res}x{res}_block{i}"] = self._block(channels, width, attention=attention)
                channels = width
                skips.append(channels)
        return skips

    def _build_decoder(self, widths: Sequence[int], skips: list[int]) -> None:
        """Fill ``dec``, consuming ``skips`` from its end."""
        deepest = len(widths) - 1
        channels = widths[deepest]
        for level in range(deepest, -1, -1):
            res, width = self._resolutions[level], widths[level]
            if level == deepest:
                self.dec[f"{res}x{res}_in0"] = self._block(channels, channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = self._block(channels, channels)
            else:
                self.dec[f"{res}x{res}_up"] = self._block(channels, channels, direction="up")
            for i in range(self.num_blocks + 1):
                attention = i == self.num_blocks and res in self._attn_resolutions
                self.dec[f"{res}x{res}_block{i}"] = self._block(channels + skips.pop(), width, attention=attention)
                channels = width
            if self.decoder_type == "skip" and level < deepest:
                self.dec[f"{res}x{res}_aux_up"] = Resample("up", self._taps)
            if self.decoder_type == "skip" or level == 0:
                self.dec[f"{res}x{res}_aux_norm"] = group_norm(channels)
                self.dec[f"{res}x{res}_aux_conv"] = conv(channels, self.out_channels, 3, gain=1e-5)

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
        x, skips = self._encode(x, emb)
        return self._decode(x, skips, emb)

    def _embed(self, noise_labels: Tensor, class_labels: Tensor | None, batch: int) -> Tensor:
        """Embedding of noise level and class. Shape: (batch or 1, emb_channels)."""
        emb = self.map_noise(noise_labels)
        if self.label_dim:
            labels: Tensor = emb.new_zeros(1, self.label_dim) if class_labels is None else class_labels.to(emb.dtype)
            if self.training and self.label_dropout:
                keep = torch.rand(batch, 1, device=emb.device) >= self.label_dropout
                labels = labels * keep
            # A one-hot row has a mean square of 1/label_dim; this makes it one.
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the encoder; also returns every output that the decoder will take back."""
        skips: list[Tensor] = []
        pyramid = x
        for level, res in enumerate(self._resolutions):
            if level == 0:
                x = self.enc[f"{res}x{res}_conv"](x)
            else:
                x = self.enc[f"{res}x{res}_down"](x, emb)
                if self.encoder_type == "skip":
                    pyramid = self.enc[f"{res}x{res}_aux_down"](pyramid)
                    x = x + self.enc[f"{res}x{res}_aux_skip"](pyramid)
                elif self.encoder_type == "residual":
                    x = pyramid = (x + self.enc[f"{res}x{res}_aux_residual"](pyramid)) / math.sqrt(2.0)
            skips.append(x)
            for i in range(self.num_blocks):
                x = self.enc[f"{res}x{res}_block{i}"](x, emb)
                skips.append(x)
        return x, skips

    def _decode(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Run the decoder on the encoder's last output, consuming ``skips`` from its end."""
        deepest = len(self._resolutions) - 1
        output: Tensor | None = None
        for level in range(deepest, -1, -1):
            name = f"{self._resolutions[level]}x{self._resolutions[level]}"
            if level == deepest:
                x = self.dec[f"{name}_in1"](self.dec[f"{name}_in0"](x, emb), emb)
            else:
                x = self.dec[f"{name}_up"](x, emb)
            for i in range(self.num_blocks + 1):
                x = self.dec[f"{name}_block{i}"](torch.cat([x, skips.pop()], dim=1), emb)
            if self.decoder_type == "skip" or level == 0:
                part = self.dec[f"{name}_aux_conv"](F.silu(self.dec[f"{name}_aux_norm"](x)))
                output = part if output is None else self.dec[f"{name}_aux_up"](output) + part
        assert output is not None  # the last level always has one
        return output
