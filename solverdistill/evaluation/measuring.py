"""Measure solvers on any number of samples, batch by batch, on one or several processes.

Only the errors of every sample (four numbers), running sums of features, a subset of the features and the first few
images are kept. Process r of w takes every w-th batch; what they have is summed at the end, and since a batch depends
on its indices alone, the result does not depend on their number beyond the order of the sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solverdistill.evaluation.candidates import Candidate
from solverdistill.evaluation.compare import Progress
from solverdistill.evaluation.end_points import EndPoints
from solverdistill.evaluation.metrics.feature_spaces import FeatureSpace
from solverdistill.evaluation.metrics.feature_statistics import FeatureStatistics
from solverdistill.evaluation.metrics.paired_errors import Distance, PairedErrors, paired_errors
from solverdistill.evaluation.metrics.set_distances import Distances, distances
from solverdistill.evaluation.real_images import RealImages
from solverdistill.evaluation.rows import REFERENCE, Row, make_row
from solverdistill.programs.playing import Denoise
from solverdistill.support.processes import processes, sum_over_processes

NAMES = ("rmse", "psnr", "ssim", "lpips")


@dataclass(frozen=True)
class Yardstick:
    """What every solver is measured with.

    Args:
        as_images: Turns end points into images in [-1, 1].
        lpips: Perceptual distance of pairs of images; None leaves it out.
        space: Features for distances between sets; None leaves these out.
        real: Statistics of the real images in that space.
        backend: Library of the kernel distance.
        neighbours: k of precision and recall.
        subset: Number of samples whose features are kept for kernel distance, precision and recall: the first ones.
        images: Number of samples whose images are kept: the first ones.
    """

    as_images: Callable[[Tensor], Tensor]
    lpips: Distance | None = None
    space: FeatureSpace | None = None
    real: FeatureStatistics | None = None
    backend: str = "cleanfid"
    neighbours: int = 3
    subset: int = 5000
    images: int = 0

    def statistics(self, samples: int) -> FeatureStatistics | None:
        """Empty statistics for a number of samples."""
        return None if self.space is None else FeatureStatistics(self.space.width, range(min(self.subset, samples)))

    def distances(self, statistics: FeatureStatistics | None) -> Distances:
        """Distances of all samples from the real images; sums over the processes."""
        if statistics is None:
            return Distances()
        statistics.reduce()
        return Distances() if self.real is None else distances(self.real, statistics, self.backend, self.neighbours)


@dataclass(frozen=True, eq=False)
class Measured:
    """A solver's row and the images of its first samples, in [-1, 1]. Shape: (images, channels, height, width)."""

    row: Row
    images: Tensor


def measure(
    candidate: Candidate | None,
    denoiser: Denoise,
    ends: EndPoints,
    yardstick: Yardstick,
    batch_size: int,
    progress: Progress | None = None,
) -> Measured:
    """Play a solver on all samples and measure it; None measures the reference itself.

    Args:
        candidate: The solver.
        denoiser: The teacher, possibly guided, on the device of `ends.source`.
        ends: Noise, conditions and reference end points.
        yardstick: What is measured.
        batch_size: Samples per batch.
        progress: Called with the label, the samples done by this process and those it has to do.
    """
    total, label = len(ends), REFERENCE if candidate is None else candidate.label
    errors, kept = _Errors(total), None
    statistics = yardstick.statistics(total)
    seconds = torch.zeros(1, dtype=torch.float64)
    batches, done = ends.batches(batch_size), 0
    for start, stop in batches:
        noise, cond, end = ends.take(start, stop)
        begun = time.perf_counter()
        samples = end if candidate is None else candidate.play(denoiser, noise, cond, ends.source.device)
        seconds += time.perf_counter() - begun
        images = yardstick.as_images(samples)
        pair = images, images if candidate is None else yardstick.as_images(end.to(samples))
        errors.put(start, stop, paired_errors(samples, end, yardstick.lpips, pair))
        if statistics is not None and yardstick.space is not None:
            statistics.update(yardstick.space(images), range(start, stop))
        kept = _keep(kept, images, start, yardstick.images)
        done += stop - start
        if progress is not None:
            progress(label, done, sum(b - a for a, b in batches))
    sum_over_processes(seconds)
    joined = errors.reduce()
    took = None if candidate is None else seconds.item()
    row = make_row(candidate, joined, yardstick.distances(statistics), took)
    return Measured(row, _reduce_images(kept, ends, yardstick))


def measure_real(
    real: RealImages,
    space: FeatureSpace,
    subset: int,
    batch_size: int,
    shape: Sequence[int],
    progress: Progress | None = None,
) -> FeatureStatistics:
    """Statistics of real images; the subset is drawn at random, once and for all, because sets are sorted by class.

    Raises:
        ValueError: an image has another shape than the samples.
    """
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:subset]
    statistics = FeatureStatistics(space.width, order.tolist())
    rank, world = processes()
    starts = range(0, len(real), batch_size)[rank::world]
    for number, start in enumerate(starts, 1):
        indices = range(start, min(start + batch_size, len(real)))
        images = real.take(indices)
        if tuple(images.shape[1:]) != tuple(shape):
            raise ValueError(
                f"real images {real.name} have shape {tuple(images.shape[1:])}, the samples {tuple(shape)}; bring them "
                "to the size of the samples"
            )
        statistics.update(space(images), indices)
        if progress is not None:
            progress("real images", number, len(starts))
    return statistics.reduce()


class _Errors:
    """Errors of all samples, filled batch by batch and summed over the processes."""

    def __init__(self, samples: int) -> None:
        self.values = torch.zeros(len(NAMES), samples, dtype=torch.float64)
        self.known = torch.zeros(len(NAMES), dtype=torch.float64)

    def put(self, start: int, stop: int, errors: PairedErrors) -> None:
        for i, name in enumerate(NAMES):
            value: Tensor | None = getattr(errors, name)
            if value is not None:
                self.values[i, start:stop] = value
                self.known[i] = 1

    def reduce(self) -> PairedErrors:
        sum_over_processes(self.values)
        sum_over_processes(self.known)
        found = zip(NAMES, self.values, self.known.tolist(), strict=True)
        return PairedErrors(**{name: value for name, value, known in found if known})


def _keep(kept: Tensor | None, images: Tensor, start: int, count: int) -> Tensor:
    """Put the images of the first samples into their places."""
    if kept is None:
        kept = torch.zeros(count, *images.shape[1:])
    part = images[: max(count - start, 0)].float().cpu()
    kept[start : start + len(part)] = part
    return kept


def _reduce_images(kept: Tensor | None, ends: EndPoints, yardstick: Yardstick) -> Tensor:
    if kept is None:  # this process has no batch; the shape of an image is known from any sample
        example = torch.zeros(1, *ends.source.teacher.shape, device=ends.source.device)
        kept = torch.zeros(yardstick.images, *yardstick.as_images(example).shape[1:])
    return sum_over_processes(kept)
