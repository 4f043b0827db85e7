"""Integrals of Lagrange polynomials, from which multistep methods take their weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor


def lagrange_basis(nodes: Tensor, points: Tensor) -> Tensor:
    """Value at `points` of the polynomials that are 1 at one node and 0 at the others.

    L_j(t) = prod_{m != j} (t - t_m) / (t_j - t_m)

    Args:
        nodes: Distinct nodes. Shape: (k,).
        points: Where to evaluate. Shape: (n,).
    Returns:
        The basis, differentiable in both. Shape: (n, k).
    """
    columns = []
    for j, node in enumerate(nodes.unbind()):
        others = torch.cat([nodes[:j], nodes[j + 1 :]])
        columns.append(((points[:, None] - others) / (node - others)).prod(dim=1))
    return torch.stack(columns, dim=1)


@cache
def _gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    # numpy, because a tensor cached under inference mode could never take part in training
    points, weights = np.polynomial.legendre.leggauss(count)
    return (points + 1) / 2, weights / 2


def quadrature(start: Tensor, end: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights of [start, end], exact for polynomials of degree 2 count - 1."""
    points, weights = (torch.from_numpy(values) for values in _gauss_legendre(count))
    return start + (end - start) * points, (end - start) * weights


def adams_bashforth(nodes: Tensor, end: Tensor) -> Tensor:
    """Weights of the Adams-Bashforth step from the first of `nodes` to `end`, for any spacing.

    w_j = int_{u_0}^{end} L_j(u) du, exact: the polynomials have degree k - 1 <= 3 and two Gauss points integrate these.

    Args:
        nodes: Clock values of the slopes, newest first. Shape: (k,), k <= 4.
        end: Clock value at the end of the step.
    Returns:
        One weight per slope. Shape: (k,).
    """
    points, weights = quadrature(nodes[0], end, 2)
    return weights @ lagrange_basis(nodes, points)


@cache
def uniform_adams_bashforth(slopes: int) -> tuple[float, ...]:
    """Weights of the Adams-Bashforth step of unit length for slopes one unit apart, newest first."""
    nodes = -torch.arange(slopes, dtype=torch.float64)
    return tuple(adams_bashforth(nodes, torch.ones((), dtype=torch.float64)).tolist())
