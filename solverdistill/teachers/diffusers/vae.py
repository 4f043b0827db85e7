"""From latents to images in [-1, 1], with gradients, for losses that look at pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Decoder:
    """The decoder half of a VAE, loaded when it is first used and then kept on the device of the latents.

    image = decode(latents / scaling + shift). Sample by sample and, where asked, tile by tile; every piece is
    recomputed in the backward pass, so that one of them is in memory at a time. Overlapping tiles are blended with
    weights that fall linearly to their edges. Tiles change the image a little, because the decoder normalises and
    attends over what it sees. It runs in float32 whatever the teacher's dtype: SDXL's overflows in float16.

    Args:
        load: Loads the VAE.
        tile: Height and width of a tile in latent pixels; None decodes whole samples.
        overlap: Latent pixels that neighbouring tiles share.
    """

    def __init__(self, load: Callable[[], Any], tile: int | None = None, overlap: int = 8) -> None:
        if tile is not None and not 0 <= overlap < tile:
            raise ValueError(f"tiles of the decoder overlap by {overlap}, which must be less than their size {tile}")
        self.load, self.tile, self.overlap = load, tile, overlap
        self._vae: Any = None

    def __call__(self, latents: Tensor) -> Tensor:
        """Images of latents, not clipped. Shape: (batch, 3, height, width)."""
        if self._vae is None:
            self._vae = self.load().float().eval().requires_grad_(False)
        self._vae = self._vae.to(latents.device)
        z = self._unscaled(latents.float())
        return torch.cat([self._decode(sample) for sample in z.split(1)])

    def _unscaled(self, latents: Tensor) -> Tensor:
        config = self._vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        z = latents / config.scaling_factor
        if mean is not None and std is not None:
            return z * z.new_tensor(std).view(1, -1, 1, 1) + z.new_tensor(mean).view(1, -1, 1, 1)
        return z + (getattr(config, "shift_factor", None) or 0.0)

    def _piece(self, z: Tensor) -> Tensor:
        def run(z: Tensor) -> Tensor:
            return self._vae.decode(z, return_dict=False)[0]

        if not (torch.is_grad_enabled() and z.requires_grad):
            return run(z)
        result = checkpoint(run, z, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(result, Tensor)
        return result

    def _decode(self, z: Tensor) -> Tensor:
        height, width = z.shape[2:]
        if self.tile is None or (height <= self.tile and width <= self.tile):
            return self._piece(z)
        total, weights = None, None
        for top, rows in self._spans(height):
            for left, columns in self._spans(width):
                image = self._piece(z[:, :, top : top + rows, left : left + columns])
                factor = image.shape[2] // rows
                ramp = self._ramp(rows, factor, image)[:, None] * self._ramp(columns, factor, image)
                if total is None or weights is None:
                    total = image.new_zeros(*image.shape[:2], height * factor, width * factor)
                    weights = image.new_zeros(height * factor, width * factor)
                y, x = top * factor, left * factor
                pad = (x, weights.shape[1] - x - ramp.shape[1], y, weights.shape[0] - y - ramp.shape[0])
                total = total + torch.nn.functional.pad(image * ramp, pad)
                weights = weights + torch.nn.functional.pad(ramp, pad)
        assert total is not None and weights is not None
        return total / weights

    def _spans(self, length: int) -> Iterator[tuple[int, int]]:
        """Start and length of the tiles along one side, the last one flush with the end."""
        assert self.tile is not None
        size, start = min(self.tile, length), 0
        while start + size < length:
            yield start, size
            start += size - self.overlap
        yield length - size, size

    def _ramp(self, length: int, factor: int, like: Tensor) -> Tensor:
        """Blending weights along one side of a tile: rising over the overlap, 1, falling over the overlap."""
        pixels, edge = length * factor, max(self.overlap * factor, 1)
        distance = torch.arange(1, pixels + 1, device=like.device, dtype=like.dtype)
        return (torch.minimum(distance, pixels + 1 - distance) / edge).clamp(max=1.0)
