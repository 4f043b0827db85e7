"""Frechet distance of two sets of samples, from the means and covariances of their features.

The squared distance of two Gaussians N(mu, S) and N(nu, T) is

    |mu - nu|^2 + tr(S) + tr(T) - 2 tr((S T)^(1/2)),

and with symmetric roots the last trace is the sum of the singular values of S^(1/2) T^(1/2). That form needs no root of
a matrix that is not symmetric, stays real, and holds its digits where both covariances are singular in the same
directions, as those of few samples nearly are.
Reference: Dowson, Landau, "The Frechet distance between multivariate normal distributions", J. Multivariate Anal. 1982;
Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017, whose Inception network alone gives FID.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from solverdistill.evaluation.metrics.feature_statistics import FeatureStatistics


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The squared distance in float64, at least 0; infinite where features are not finite.

    Raises:
        ValueError: one of the sets has no more samples than there are features.
    """
    shift, (s, t) = first.mean - second.mean, (first.covariance, second.covariance)
    if not bool(shift.isfinite().all() and s.isfinite().all() and t.isfinite().all()):
        return math.inf
    overlap = torch.linalg.svdvals(_root(s) @ _root(t)).sum()
    # Rounding leaves tiny negative numbers for equal sets.
    return max((shift.square().sum() + s.trace() + t.trace() - 2 * overlap).item(), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """Symmetric root; eigenvalues that rounding has made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
