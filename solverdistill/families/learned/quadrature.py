"""Gauss rules for one solver step: where, and with which weights, an untrained solver should evaluate.

A step from u to u' integrates the slope (y - denoised) / tau. Where the denoised image is a polynomial of degree m in
r = log(u / tau) / L, L = log(u / u'), the slope of the exact trajectory is a combination of 1 and of (u / tau) r^j with
j < m. Its mean over the step is sum_k w_k slope(tau_k) with w_k in proportion to q_k tau_k, if

    sum_k q_k f(r_k) = integral_0^1 f(r) dr        for f = 1, r, ..., r^(2K-2) and exp(-L r) = tau / u,

up to m = 2K - 1.
These 2 K functions form a Chebyshev system, so such nodes in (0, 1) with positive weights exist and are unique; as L
goes to 0 they become those of Gauss and Legendre.
Reference: Karlin, Studden, "Tchebycheff Systems", Wiley 1966, ch. II (the canonical representation of a moment point).
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, factorial
from typing import NamedTuple

import torch
from torch import Tensor

from solverdistill.noise.levels import float64

TERMS = 80  # of the series of the exponential; enough for L up to 20
NEWTON = 30
TOLERANCE = 1e-12


class Rule(NamedTuple):
    """Increasing nodes in (0, 1) and positive weights that sum to 1, each of shape (points,), float64."""

    nodes: Tensor
    weights: Tensor


@lru_cache(maxsize=256)
def exponential_gauss(points: int, length: float) -> Rule:
    """The rule with the given number of nodes that is exact for polynomials and for exp(-length r).

    Newton's method from the rule of Gauss and Legendre, with the length growing by at most 1 at a time.

    Args:
        points: K, at least 1.
        length: L > 0, the step's length in log u.
    Raises:
        ValueError: it was not found; lengths up to 15 with up to 4 points are.
    """
    with torch.inference_mode(False), torch.no_grad():
        rule: Rule | None = _legendre(points)
        stages = ceil(length)
        for stage in range(1, stages + 1):
            rule = _newton(rule, length * stage / stages)
            if rule is None:
                raise ValueError(
                    f"no rule of {points} points was found for a step of length {length:g} in log u; take fewer points"
                )
    return rule


def _newton(start: Rule, length: float) -> Rule | None:
    """The rule of a length from that of a nearby one; None where the iteration does not converge."""
    nodes, weights = start
    points = len(nodes)
    for _ in range(NEWTON):
        values, slopes, integrals = _system(nodes, length)
        residual = values @ weights - integrals
        if float(residual.abs().max()) < TOLERANCE:
            return Rule(nodes, weights)
        step = torch.linalg.solve(torch.cat([slopes * weights, values], dim=1), residual)
        nodes, weights = nodes - step[:points], weights - step[points:]
    return None


def _system(nodes: Tensor, length: float) -> tuple[Tensor, Tensor, Tensor]:
    """Functions, their derivatives and their integrals. Shapes: (2 K, K), (2 K, K), (2 K,).

    In place of the exponential stands what its series has beyond the polynomials, scaled to r^(2K-1) (1 + O(L)): the
    same span, and no cancellation in short steps.
    """
    size = 2 * len(nodes) - 1
    power = torch.arange(size + TERMS, dtype=torch.float64)
    series = float64([(-length) ** m * factorial(size) / factorial(size + m) for m in range(TERMS)])
    terms = nodes ** power[:, None]
    derivatives = power[:, None] * nodes ** (power[:, None] - 1).clamp(min=0)
    integrals = 1 / (power + 1)

    def combined(rows: Tensor) -> Tensor:
        return torch.cat([rows[:size], (series @ rows[size:])[None]])

    return combined(terms), combined(derivatives), combined(integrals)


def _legendre(points: int) -> Rule:
    """The rule of Gauss and Legendre on (0, 1) (Golub, Welsch 1969)."""
    i = torch.arange(1, points, dtype=torch.float64)
    off = i / (4 * i**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return Rule((values + 1) / 2, vectors[0] ** 2)
