"""Play every candidate from the same noise and measure its end points against the reference's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from solverdistill.evaluation.candidates import Candidate
from solverdistill.evaluation.metrics.frechet import Features, FrechetDistance
from solverdistill.evaluation.metrics.paired import PairedErrors, paired_errors
from solverdistill.programs.playing import Denoise, sample

REFERENCE = "reference"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """One solver's line in a comparison.

    Args:
        label: Name of the solver.
        kind: "student", "classical" or "reference".
        nfe: Evaluations of the denoiser per sample; None where not known.
        depth: Sequential network calls per sample; None where not known.
        rmse_mean: Mean of the per-image RMSE against the reference end points, in data units.
        rmse_median: Its median.
        rmse_p95: Its 95th percentile.
        psnr: Mean per-image PSNR in dB; infinite for the reference itself.
        frechet: FD(<extractor>) against real images; None without extractor or with too few images.
        seconds: Wall time of sampling all images; None for the reference.
        psnr_median: Median of the per-image PSNR.
        psnr_p05: Its 5th percentile: 95 % of the images are better.
        ssim: Mean per-image structural similarity; None where the samples are no images.
        ssim_median: Its median.
        ssim_p05: Its 5th percentile.
        lpips: Mean per-image LPIPS; None where it was not asked for.
        lpips_median: Its median.
        lpips_p95: Its 95th percentile.
        kernel: Kernel distance KD(<extractor>) against real images, KID on Inception.
        precision: Share of the samples that lie within the real images' manifold.
        recall: Share of the real images that lie within the samples' manifold.
        images: Number of samples measured.
    """

    label: str
    kind: str
    nfe: int | None
    depth: int | None
    rmse_mean: float
    rmse_median: float
    rmse_p95: float
    psnr: float
    frechet: float | None = None
    seconds: float | None = None
    psnr_median: float | None = None
    psnr_p05: float | None = None
    ssim: float | None = None
    ssim_median: float | None = None
    ssim_p05: float | None = None
    lpips: float | None = None
    lpips_median: float | None = None
    lpips_p95: float | None = None
    kernel: float | None = None
    precision: float | None = None
    recall: float | None = None
    images: int | None = None


def compare(
    candidates: Sequence[Candidate],
    denoiser: Denoise,
    noise: Tensor,
    cond: Any,
    reference: Tensor,
    batch_size: int,
    extractor: nn.Module | None = None,
    real: Tensor | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Compare solvers by their distance to reference end points.

    Batches travel to the denoiser's device and only their errors stay, so memory does not grow with the number of
    images. A student written on another path than the reference ends at another scale; compare such solvers only
    where both end at alpha = 1.

    Args:
        candidates: Solvers; see `classical_candidates`.
        denoiser: ``denoiser(x, alpha, sigma, cond)`` -> denoised.
        noise: Unit-normal noise. Shape: (images, ...).
        cond: Pytree of conditions, every tensor with a dimension having `images` as its first; None for none.
        reference: End points of the reference solver from the same noise. Shape: as noise.
        batch_size: Images per batch.
        extractor: Network for the Frechet distance, as `metrics.Features` takes it; needs `real`.
        real: Real images in [-1, 1].
        progress: Called with the candidate's label, the images done and the images to do, after every batch.
    Returns:
        A row for each candidate, in their order, then the reference's own.
    Raises:
        ValueError: noise and reference differ in shape, or an extractor comes without real images.
    """
    if noise.shape != reference.shape:
        raise ValueError(f"noise {tuple(noise.shape)} and reference {tuple(reference.shape)} differ in shape")
    if extractor is not None and real is None:
        raise ValueError("a Frechet distance is measured against real images: give `real` with `extractor`")
    frechet: FrechetDistance | None = None
    with torch.inference_mode():
        if extractor is not None and real is not None and min(len(real), len(noise)) > Features(extractor).num_features:
            frechet = FrechetDistance(extractor, real, batch_size)
        rows = [
            _measure(candidate, denoiser, _batches(noise, cond, reference, batch_size), len(noise), frechet, progress)
            for candidate in candidates
        ]
        return [*rows, _reference_row(reference, batch_size, frechet)]


def _measure(
    candidate: Candidate,
    denoiser: Denoise,
    batches: Iterator[tuple[Tensor, Any, Tensor]],
    images: int,
    frechet: FrechetDistance | None,
    progress: Progress | None,
) -> Row:
    """Play one candidate over all batches."""
    device = _device(denoiser)
    errors: list[PairedErrors] = []
    seconds, done = 0.0, 0
    for noise, cond, reference in batches:
        noise, cond = pytree.tree_map(lambda leaf: _to(leaf, device), (noise, cond))
        start = time.perf_counter()
        samples = sample(candidate.program, denoiser, noise, cond)
        if samples.is_cuda:
            torch.cuda.synchronize(samples.device)
        seconds += time.perf_counter() - start
        errors.append(paired_errors(samples, reference))
        if frechet is not None:
            frechet.update(samples)
        done += len(noise)
        if progress is not None:
            progress(candidate.label, done, images)
    joined = PairedErrors.join(errors)
    return make_row(candidate.label, candidate.kind, candidate.nfe, candidate.depth, joined, _finish(frechet), seconds)


def _reference_row(reference: Tensor, batch_size: int, frechet: FrechetDistance | None) -> Row:
    errors = PairedErrors.join(paired_errors(batch, batch) for batch in reference.split(batch_size))
    if frechet is not None:
        frechet.update(reference)
    return make_row(REFERENCE, REFERENCE, None, None, errors, _finish(frechet), None)


def make_row(
    label: str,
    kind: str,
    nfe: int | None,
    depth: int | None,
    errors: PairedErrors,
    frechet: float | None = None,
    seconds: float | None = None,
) -> Row:
    """A row from the errors of all images."""
    extra: dict[str, float] = {}
    for name, tail in (("psnr", "psnr_p05"), ("ssim", "ssim_p05"), ("lpips", "lpips_p95")):
        summary = errors.summary(name)
        if summary is not None:
            extra |= {name: summary.mean, f"{name}_median": summary.median, tail: summary.tail}
    summary = errors.mean, errors.median, errors.p95, extra.pop("psnr")
    count = len(errors.rmse)
    return Row(label, kind, nfe, depth, *summary, frechet=frechet, seconds=seconds, images=count, **extra)


def _finish(frechet: FrechetDistance | None) -> float | None:
    """The distance of the samples since the last call."""
    if frechet is None:
        return None
    value = frechet.compute()
    frechet.reset()
    return value


def _batches(noise: Tensor, cond: Any, reference: Tensor, size: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
    for start in range(0, len(noise), size):
        rows = slice(start, start + size)
        yield noise[rows], pytree.tree_map(lambda leaf, rows=rows: _rows(leaf, rows), cond), reference[rows]


def _rows(leaf: Any, rows: slice) -> Any:
    return leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def _to(leaf: Any, device: torch.device | None) -> Any:
    return leaf.to(device) if isinstance(leaf, Tensor) and device is not None else leaf


def _device(denoiser: Denoise) -> torch.device | None:
    """Device of the denoiser's first tensor; None for a plain function, which takes the noise where it is."""
    if not isinstance(denoiser, nn.Module):
        return None
    tensors = [*denoiser.parameters(), *denoiser.buffers()]
    return tensors[0].device if tensors else None
