"""Grids that people run today, under the names that k-diffusion, ComfyUI and their nodes gave them.

Each is a rule for `steps` levels above 0, followed by 0. Levels are those of the path's clock: sigma / alpha, or a flow
path's time. Some rules look only at the largest and the smallest level; others at the levels that a network was trained
on, an ascending list s_0 .. s_{M-1}, and at its times, which are indices of that list. With n steps and i = 0 .. n-1:

==================  ===============================================================================================
kind                levels before the final 0
==================  ===============================================================================================
karras              polynomial, rho 7                                            Karras et al. 2022
exponential         geometric
kl_optimal          tan of an arc even in atan                                   Sabour et al. 2024, Theorem 3.1
linear_quadratic    linear for half of the steps and 2.5 % of the way, then quadratic to 0       Movie Gen, 2024
bong_tangent        two arctangents that meet at half of the largest level                       RES4LYF
laplace             quantiles of a Laplace distribution in log sigma; no 0 follows               Hang et al. 2024
simple              s_{M-1-int(i M / n)}
normal              times even between both ends
sgm_uniform         times even between both ends, n + 1 of them, without the last
ddim_uniform        every (M // n)-th level, from s_1 up
beta                quantiles of a Beta(0.6, 0.6) distribution of times                          Lee et al. 2024
beta57              the same with Beta(0.5, 0.7)                                                 RES4LYF
ays_sd15            published levels for 10 steps, log-linear for others                         Sabour et al. 2024
ays_sdxl, ays_svd   the same
==================  ===============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solverdistill.noise.levels import float64

AYS = {
    "ays_sd15": (14.6146412293, 6.4745760956, 3.8636745985, 2.694615152, 1.8841921177, 1.3943805092)
    + (0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    "ays_sdxl": (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141)
    + (0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    "ays_svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


class Trained(NamedTuple):
    """Levels that a network was trained on.

    Args:
        sigmas: Ascending. Shape: (M,).
        level_at: The level at fractional indices.
        index_of: The index at which a level is sought.
        largest: Where a grid begins.
        smallest: Where it ends but for 0.
    """

    sigmas: Tensor
    level_at: Callable[[Tensor], Tensor]
    index_of: Callable[[float], float]
    largest: float
    smallest: float


def between(sigmas: Tensor, largest: float, smallest: float) -> Trained:
    """Levels whose logarithm is linear between the entries of a list; a level's index is that of the nearest one."""
    logs = torch.log(sigmas)

    def level(index: Tensor) -> Tensor:
        below = index.floor().long().clamp(0, len(logs) - 1)
        above = index.ceil().long().clamp(0, len(logs) - 1)
        return torch.exp(logs[below] + (logs[above] - logs[below]) * (index - below))

    return Trained(sigmas, level, lambda sigma: float((logs - math.log(sigma)).abs().argmin()), largest, smallest)


def continuous(largest: float, smallest: float, count: int = 1000) -> Trained:
    """A network without times of its own: its levels are geometric, and its time is log sigma."""
    sigmas = torch.exp(torch.linspace(math.log(smallest), math.log(largest), count, dtype=torch.float64))
    return Trained(sigmas, torch.exp, math.log, largest, smallest)


def of_flow(shift: float, largest: float, smallest: float, count: int = 1000) -> Trained:
    """A flow network, whose times are shifted; as in ComfyUI the index of a level does not undo the shift."""

    def level(index: Tensor) -> Tensor:
        return shift * (index / count) / (1 + (shift - 1) * (index / count))

    sigmas = level(torch.arange(1, count + 1, dtype=torch.float64))
    return Trained(sigmas, level, lambda sigma: sigma * count, largest, smallest)


def _karras(trained: Trained, n: int) -> Tensor:
    ends = trained.largest ** (1 / 7), trained.smallest ** (1 / 7)
    return (ends[0] + _even(0, 1, n) * (ends[1] - ends[0])) ** 7


def _exponential(trained: Trained, n: int) -> Tensor:
    return torch.exp(_even(math.log(trained.largest), math.log(trained.smallest), n))


def _kl_optimal(trained: Trained, n: int) -> Tensor:
    return torch.tan(_even(math.atan(trained.largest), math.atan(trained.smallest), n))


def _linear_quadratic(trained: Trained, n: int, threshold: float = 0.025) -> Tensor:
    if n == 1:
        return float64([trained.largest])
    linear = n // 2
    rest, i = n - linear, torch.arange(n, dtype=torch.float64)
    curve = (linear - threshold * n) / (linear * rest**2)
    slope = threshold / linear - 2 * (linear - threshold * n) / rest**2
    risen = torch.where(i < linear, i * threshold / linear, curve * i**2 + slope * i + curve * linear**2)
    return (1 - risen) * trained.largest


def _bong_tangent(trained: Trained, n: int) -> Tensor:
    if n == 1:
        raise ValueError("a bong_tangent grid needs at least 2 steps")
    whole = n + 2
    pivot = int(0.6 * whole)

    def half(count: int, middle: int, top: float, bottom: float) -> Tensor:
        x = torch.arange(count, dtype=torch.float64)
        fall = torch.atan(-(8 / whole) * (x - middle)) / math.pi + 0.5
        return (fall - fall[-1]) / (fall[0] - fall[-1]) * (top - bottom) + bottom

    levels = torch.cat([half(pivot, pivot, 1.0, 0.5)[:-1], half(whole - pivot, 0, 0.5, 0.0)])
    return levels[:-1] * trained.largest


def _simple(trained: Trained, n: int) -> Tensor:
    count = len(trained.sigmas)
    return trained.sigmas[[count - 1 - int(i * count / n) for i in range(n)]]


def _normal(trained: Trained, n: int) -> Tensor:
    return trained.level_at(_even(*_times(trained), n))


def _sgm_uniform(trained: Trained, n: int) -> Tensor:
    return trained.level_at(_even(*_times(trained), n + 1)[:-1])


def _ddim_uniform(trained: Trained, n: int) -> Tensor:
    return trained.sigmas[1 :: max(len(trained.sigmas) // n, 1)].flip(0)


def _beta(trained: Trained, n: int, a: float = 0.6, b: float = 0.6) -> Tensor:
    try:
        from scipy import stats
    except ImportError:
        raise ValueError("a beta grid needs scipy: pip install 'solverdistill[fit]'") from None
    quantiles = stats.beta.ppf(1 - np.arange(n) / n, a, b)
    chosen = np.rint(quantiles * (len(trained.sigmas) - 1)).astype(int)
    return trained.sigmas[list(dict.fromkeys(chosen.tolist()))]


def _beta57(trained: Trained, n: int) -> Tensor:
    return _beta(trained, n, 0.5, 0.7)


def _ays(kind: str) -> Callable[[Trained, int], Tensor]:
    def levels(trained: Trained, n: int) -> Tensor:
        logs = np.log(AYS[kind])
        return torch.from_numpy(np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(logs)), logs)))[:-1]

    return levels


def _laplace(trained: Trained, n: int, mean: float = 0.0, scale: float = 0.5) -> Tensor:
    x = _even(0, 1, n)
    logs = mean - scale * torch.sign(0.5 - x) * torch.log(1 - 2 * (0.5 - x).abs() + 1e-5)
    return torch.exp(logs).clamp(trained.smallest, trained.largest)


def _even(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64)


def _times(trained: Trained) -> tuple[float, float]:
    return trained.index_of(trained.largest), trained.index_of(trained.smallest)


BETWEEN_ENDS: dict[str, Callable[[Trained, int], Tensor]] = {
    "karras": _karras,
    "exponential": _exponential,
    "kl_optimal": _kl_optimal,
    "linear_quadratic": _linear_quadratic,
    "bong_tangent": _bong_tangent,
    "laplace": _laplace,
}
OF_TRAINING: dict[str, Callable[[Trained, int], Tensor]] = {
    "simple": _simple,
    "normal": _normal,
    "sgm_uniform": _sgm_uniform,
    "ddim_uniform": _ddim_uniform,
    "beta": _beta,
    "beta57": _beta57,
    **{kind: _ays(kind) for kind in AYS},
}
IN_USE = {**BETWEEN_ENDS, **OF_TRAINING}


def levels_in_use(kind: str, trained: Trained, steps: int) -> Tensor:
    """The levels of a kind, with the final 0.

    Raises:
        ValueError: it does not come in that many steps.
    """
    if kind == "laplace":
        return _laplace(trained, steps + 1)
    levels = torch.cat([IN_USE[kind](trained, steps), float64([0.0])])
    if len(levels) != steps + 1:
        raise ValueError(
            f"a {kind} grid of {steps} steps has {len(levels) - 1}: its levels are picked from {len(trained.sigmas)}"
        )
    return levels
