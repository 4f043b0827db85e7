"""Play every candidate from the same noise and measure its end points against the reference's.

`compare` takes noise and end points that are in memory, on one process. `measuring` does the same for any number of
samples on disk and several processes, with more measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from solverdistill.evaluation.candidates import Candidate
from solverdistill.evaluation.metrics.feature_spaces import Features
from solverdistill.evaluation.metrics.feature_statistics import FeatureStatistics
from solverdistill.evaluation.metrics.frechet import frechet_distance
from solverdistill.evaluation.metrics.paired_errors import PairedErrors, paired_errors
from solverdistill.evaluation.metrics.set_distances import Distances
from solverdistill.evaluation.rows import Row, make_row
from solverdistill.programs.playing import Denoise

Progress = Callable[[str, int, int], None]


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
        extractor: Network for the Frechet distance, as `Features` takes it; needs `real`.
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
    with torch.inference_mode():
        features = None if extractor is None else Features(extractor)
        known: FeatureStatistics | None = None
        if features is not None and real is not None and min(len(real), len(noise)) > features.num_features:
            known = FeatureStatistics(features.num_features)
            for batch in real.split(batch_size):
                known.update(features(batch), range(len(batch)))
        rows: list[Row] = []
        for candidate in (*candidates, None):
            batches = _batches(noise, cond, reference, batch_size)
            rows.append(_measure(candidate, denoiser, batches, len(noise), features, known, progress))
        return rows


def _measure(
    candidate: Candidate | None,
    denoiser: Denoise,
    batches: Iterator[tuple[Tensor, Any, Tensor]],
    images: int,
    features: Features | None,
    real: FeatureStatistics | None,
    progress: Progress | None,
) -> Row:
    """Play one candidate over all batches; None measures the reference itself."""
    device = device_of(denoiser)
    errors: list[PairedErrors] = []
    statistics = None if real is None else FeatureStatistics(real.width)
    seconds, done = 0.0, 0
    for noise, cond, reference in batches:
        start = time.perf_counter()
        samples = reference if candidate is None else candidate.play(denoiser, noise, cond, device)
        seconds += time.perf_counter() - start
        errors.append(paired_errors(samples, reference))
        if statistics is not None and features is not None:
            statistics.update(features(samples), range(len(samples)))
        done += len(noise)
        if progress is not None and candidate is not None:
            progress(candidate.label, done, images)
    frechet = None if statistics is None or real is None else frechet_distance(real, statistics)
    return make_row(candidate, PairedErrors.join(errors), Distances(frechet), None if candidate is None else seconds)


def _batches(noise: Tensor, cond: Any, reference: Tensor, size: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
    for start in range(0, len(noise), size):
        rows = slice(start, start + size)
        yield noise[rows], pytree.tree_map(lambda leaf, rows=rows: _rows(leaf, rows), cond), reference[rows]


def _rows(leaf: Any, rows: slice) -> Any:
    return leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def device_of(denoiser: Denoise) -> torch.device | None:
    """Device of the denoiser's first tensor; None for a plain function, which takes the noise where it is."""
    if not isinstance(denoiser, nn.Module):
        return None
    tensors = [*denoiser.parameters(), *denoiser.buffers()]
    return tensors[0].device if tensors else None
