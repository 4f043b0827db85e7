"""The embedding of a noise label that diffusion transformers and U-Nets of the guided-diffusion line share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def harmonic_embedding(labels: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of a label at frequencies falling geometrically from 1 towards 1 / `max_period`.

        w_k = max_period^(-k / half),  half = channels / 2,  k = 0 .. half - 1

    The smallest frequency is therefore not 1 / `max_period` itself. Labels need not be whole numbers.

    Args:
        labels: Network times. Shape: (batch,).
        channels: Width of the embedding, even.
    Returns:
        Embedding in the dtype of the labels. Shape: (batch, channels).
    Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    half = channels // 2
    # float32 whatever the dtype of the labels: trained weights have seen these rounded frequencies.
    ramp = torch.arange(half, dtype=torch.float32, device=labels.device)
    angle = labels[:, None] * torch.exp(ramp * (-math.log(max_period)) / half).to(labels.dtype)
    return torch.cat([angle.cos(), angle.sin()], dim=1)
