"""Images as 8-bit pixels, the way they are saved."""

from __future__ import annotations

import torch
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1], of any shape and dtype, as 8-bit pixels. Shape as images, uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
