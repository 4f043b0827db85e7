"""Running statistics of features: what distances between sets need, without the sets.

The Frechet distance needs the number n, the sum of the features and the sum of their outer products; kernel distances
and precision and recall need the features of a subset, chosen by index, so that it is the same whatever the batches and
the number of processes. Everything is kept in float64 on the host but the subset, which is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from solverdistill.support.processes import sum_over_processes


class FeatureStatistics:
    """Count, sum and second moment of features, and the features of a subset of the samples.

    Args:
        width: Number of features, d.
        subset: Indices of the samples whose features are kept, in any order. Shape: (kept,).
    Attributes:
        count: Samples seen.
        total: Sum of their features. Shape: (d,).
        outer: Sum of the outer products of their features. Shape: (d, d).
        kept: Features of the subset, in its order; zero where not seen yet. Shape: (kept, d).
    """

    def __init__(self, width: int, subset: Sequence[int] = ()) -> None:
        self.width, self.count = width, 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.outer = torch.zeros(width, width, dtype=torch.float64)
        self.kept = torch.zeros(len(subset), width)
        self._place = {index: place for place, index in enumerate(subset)}

    def update(self, features: Tensor, indices: Sequence[int]) -> None:
        """Take in the features of samples with the given indices. features: shape (batch, d).

        Raises:
            ValueError: the features have another shape.
        """
        if features.shape != (len(indices), self.width):
            shape = tuple(features.shape)
            raise ValueError(f"features of {len(indices)} samples have shape {shape}, not (batch, {self.width})")
        features = features.detach().double()
        self.count += len(indices)
        self.total += features.sum(0).cpu()
        self.outer += (features.T @ features).cpu()
        rows = [(row, self._place[index]) for row, index in enumerate(indices) if index in self._place]
        if rows:
            source, target = zip(*rows, strict=True)
            self.kept[list(target)] = features[list(source)].float().cpu()

    def reduce(self) -> FeatureStatistics:
        """Sum over all processes, in place; each of them has then seen all samples."""
        count = torch.tensor([float(self.count)], dtype=torch.float64)
        for value in (count, self.total, self.outer, self.kept):
            sum_over_processes(value)
        self.count = int(count)
        return self

    @property
    def mean(self) -> Tensor:
        """Mean of the features. Shape: (d,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Their unbiased covariance. Shape: (d, d).

        Raises:
            ValueError: there are no more samples than features, so that it is singular.
        """
        if self.count <= self.width:
            raise ValueError(
                f"a covariance of {self.width} features needs more than {self.width} samples, not {self.count}"
            )
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)
