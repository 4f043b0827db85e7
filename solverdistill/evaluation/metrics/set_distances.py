"""Distances between sets of images, from running statistics of their features.

* Frechet distance of two Gaussians fitted to the features, see `frechet`.
* Kernel distance, by clean-fid or by torchmetrics: the squared maximum mean discrepancy under the kernel
  (x . y / d + 1)^3, mean over 100 random subsets.
* Precision and recall: with the k-th nearest neighbour within its own set as the radius of a ball around every point,
  precision is the share of samples inside a ball of a real image, recall that of real images inside a ball of a sample.

On the Inception network of clean-fid the first two are called FID and KID, on anything else FD(<extractor>) and
KD(<extractor>).
Reference: Heusel et al. 2017; Binkowski et al., "Demystifying MMD GANs", ICLR 2018; Parmar et al., "On Aliased Resizing
and Surprising Subtleties in GAN Evaluation", CVPR 2022; Kynkaanniemi et al., "Improved Precision and Recall Metric for
Assessing Generative Models", NeurIPS 2019, section 2.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from solverdistill.evaluation.metrics.feature_statistics import FeatureStatistics
from solverdistill.evaluation.metrics.frechet import frechet_distance

BACKENDS = ("cleanfid", "torchmetrics")
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000
BLOCK = 1024  # rows of a distance matrix at a time


@dataclass(frozen=True)
class Distances:
    """How far a set of samples is from the real images; None where there are too few of either.

    Args:
        frechet: Frechet distance of the features, at least 0.
        kernel: Kernel distance; unbiased, so it may be slightly negative.
        precision: Share of samples within the manifold of the real images.
        recall: Share of real images within the manifold of the samples.
    """

    frechet: float | None = None
    kernel: float | None = None
    precision: float | None = None
    recall: float | None = None


def distances(real: FeatureStatistics, samples: FeatureStatistics, backend: str = "cleanfid", k: int = 3) -> Distances:
    """Measure samples against real images.

    Args:
        real: Statistics of the real images.
        samples: Statistics of the samples, on the same features.
        backend: Library that computes the kernel distance: "cleanfid" or "torchmetrics".
        k: Neighbours that decide the radius in precision and recall.
    Raises:
        ValueError: the backend is unknown.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} of the kernel distance is unknown; known: {', '.join(BACKENDS)}")
    frechet = kernel = precision = recall = None
    if min(real.count, samples.count) > real.width:
        frechet = frechet_distance(real, samples)
    if min(len(real.kept), len(samples.kept)) > k:
        kernel = (_cleanfid_kernel if backend == "cleanfid" else _torchmetrics_kernel)(real.kept, samples.kept)
        precision, recall = precision_recall(real.kept, samples.kept, k)
    return Distances(frechet, kernel, precision, recall)


def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of two sets of features. Shapes: (real, d), (samples, d).

    Raises:
        ValueError: a set has no more than k members.
    """
    if min(len(real), len(samples)) <= k:
        raise ValueError(f"precision and recall by {k} neighbours need more than {k} images of each set")
    return _covered(samples, real, _radii(real, k)), _covered(real, samples, _radii(samples, k))


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of every point to its k-th nearest neighbour, itself not counted. Shape: (points,)."""
    blocks = [_distance(block, points).kthvalue(k + 1, dim=1).values for block in points.split(BLOCK)]
    return torch.cat(blocks)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of points that lie in the ball of at least one centre."""
    inside = [(_distance(block, centres) <= radii).any(1) for block in points.split(BLOCK)]
    return torch.cat(inside).double().mean().item()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a.double(), b.double())


def _cleanfid_kernel(real: Tensor, samples: Tensor) -> float:
    import numpy

    from solverdistill.evaluation.metrics.cleanfid import load_cleanfid

    state = numpy.random.get_state()  # clean-fid draws its subsets from numpy's global generator
    numpy.random.seed(0)
    try:
        size = KERNEL_SUBSET_SIZE
        sets = real.double().numpy(), samples.double().numpy()
        return float(load_cleanfid().kernel_distance(*sets, num_subsets=KERNEL_SUBSETS, max_subset_size=size))
    finally:
        numpy.random.set_state(state)


class _Given(nn.Module):
    """Stands in torchmetrics for a network whose features are known already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def _torchmetrics_kernel(real: Tensor, samples: Tensor) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(samples), KERNEL_SUBSET_SIZE)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # it keeps all features, here those of the subset
        torch.manual_seed(0)
        metric = KernelInceptionDistance(
            feature=_Given(real.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size, sync_on_compute=False
        )
        metric.update(real.double(), real=True)
        metric.update(samples.double(), real=False)
        return metric.compute()[0].item()
