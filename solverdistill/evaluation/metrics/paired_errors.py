"""Paired distances between end points: each sample against the reference from the same noise.

With d the difference of a sample and its reference over its P values: RMSE = sqrt(sum d^2 / P) in data units. Of images
in [-1, 1]: PSNR = 10 log10(range^2 / MSE) in dB; SSIM of Wang et al., "Image quality assessment: from error visibility
to structural similarity", 2004, over Gaussian windows of 11 pixels (sd 1.5), images continued by reflection; LPIPS of
`solverdistill.objectives.lpips`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DATA_RANGE = 2.0
LARGEST = 1e6  # of a pixel in SSIM, which squares it
SMALLEST = 6  # pixels of the smallest image that can be continued by reflection for a window of 11
Distance = Callable[[Tensor, Tensor], Tensor]


class Summary(NamedTuple):
    """Mean and median over the images, and the value that 95 % of them are at least as good as."""

    mean: float
    median: float
    tail: float


@dataclass(frozen=True)
class PairedErrors:
    """Per-image errors of a set of samples, and their summaries.

    Args:
        rmse: Root mean squared error of every image, in data units, float64. Shape: (images,).
        psnr: Peak signal-to-noise ratio of every image, in dB, infinite where the images are equal. Shape: (images,).
        ssim: Structural similarity of every image; None where samples are no images or are too small. Shape: (images,).
        lpips: Perceptual distance of every image; None where it was not asked for. Shape: (images,).
    """

    rmse: Tensor
    psnr: Tensor
    ssim: Tensor | None = None
    lpips: Tensor | None = None

    def summary(self, name: str) -> Summary | None:
        """Mean, median and tail of a measure by its name: its 95th percentile, or 5th where more is better."""
        values: Tensor | None = getattr(self, name)
        if values is None:
            return None
        level = 0.05 if name in ("psnr", "ssim") else 0.95
        middle, tail = (_quantile(values, q) for q in (0.5, level))
        return Summary(values.mean().item(), middle, tail)

    @classmethod
    def join(cls, parts: Iterable[PairedErrors]) -> PairedErrors:
        """The errors of several batches as one set."""
        parts = list(parts)
        names = [name for name in ("ssim", "lpips") if getattr(parts[0], name) is not None]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in ("rmse", "psnr", *names)})


def paired_errors(
    samples: Tensor,
    reference: Tensor,
    lpips: Distance | None = None,
    images: tuple[Tensor, Tensor] | None = None,
) -> PairedErrors:
    """Measure each sample against the reference end point from the same noise.

    Args:
        samples: End points of a solver. Shape: (batch, ...).
        reference: End points of the reference solver. Shape: as samples.
        lpips: Perceptual distance of pairs of images, as `objectives.lpips.LPIPS`.
        images: Images in [-1, 1] of samples and reference for all but RMSE; None where they are such images.
    Returns:
        Errors of every image, float64 on the host.
    Raises:
        ValueError: the shapes differ or have no dimension beside the batch.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if samples.shape != reference.shape or samples.ndim < 2:
        shapes = f"{tuple(samples.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"samples and reference need one shape (batch, ...), not {shapes}")
    first, second = _doubles(samples, reference)
    rmse = (first - second).square().flatten(1).mean(1).sqrt().cpu()
    samples, reference = images or (samples, reference)
    perceptual = None if lpips is None else lpips(samples, reference.to(samples)).detach().cpu().double()
    samples, reference = _doubles(samples, reference)
    within = tuple(range(1, samples.ndim))
    psnr = peak_signal_noise_ratio(samples, reference, data_range=DATA_RANGE, dim=within, reduction="none")
    return PairedErrors(rmse, psnr.cpu(), _ssim(samples, reference), perceptual)


def _doubles(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 where the samples are, or on the host where their device has no such numbers."""
    device = torch.device("cpu") if samples.device.type == "mps" else samples.device
    return samples.to(device, torch.float64), reference.to(device, torch.float64)


def _ssim(samples: Tensor, reference: Tensor) -> Tensor | None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    if samples.ndim != 4 or min(samples.shape[2:]) < SMALLEST:
        return None
    # A mean over channels and pixels: each channel as an image of its own. In single precision a CPU convolves twenty
    # times faster, and the result differs by less than 1e-4; what diverged must not overflow.
    dtype = torch.float32 if samples.device.type == "cpu" else torch.float64
    first, second = (x.clamp(-LARGEST, LARGEST).to(dtype).flatten(0, 1)[:, None] for x in (samples, reference))
    value = structural_similarity_index_measure(first, second, data_range=DATA_RANGE, reduction="none")
    assert isinstance(value, Tensor)
    return value.double().reshape(samples.shape[:2]).mean(1).cpu()


def _quantile(values: Tensor, level: float) -> float:
    """Interpolated quantile of any number of values, infinite ones among them."""
    ordered = values.double().sort().values
    place = level * (len(ordered) - 1)
    low, part = ordered[int(place)].item(), place - int(place)
    return low if part == 0 else (1 - part) * low + part * ordered[int(place) + 1].item()
