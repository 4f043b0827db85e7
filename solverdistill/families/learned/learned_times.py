"""Learned grids: positive step sizes that add up to the range of the grid, in a variable r that suits equal steps.

    r_i = r_0 + (r_N - r_0) sum_{k < i} softmax(raw)_k,        s_i = s(r_i),  ends constant

r is the path's own unit, but sigma^(1/7) on the edm path, where equal steps in sigma would spend all but one of them on
almost pure noise. Equal steps in r are then the grid of Karras et al. 2022; unlike log sigma or the time of a VP
process, r is finite at sigma = 0 and assumes no range of sigma.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM, Path

EDM_RHO = 7
STARTS = ("uniform", "grid")


def to_regular(path: Path, s: Tensor) -> Tensor:
    """r at a noise level in the path's own unit."""
    return s ** (1 / EDM_RHO) if isinstance(path, EDM) else s


def from_regular(path: Path, r: Tensor) -> Tensor:
    """Noise level in the path's own unit at r; smooth past the ends of a grid."""
    return r**EDM_RHO if isinstance(path, EDM) else r


def learned_grid(path: Path, grid: Sequence[float], raw: Tensor) -> Tensor:
    """Noise levels between the constant ends of `grid` with step sizes softmax(raw). Shape: (steps + 1,)."""
    ends = float64([grid[0], grid[-1]])
    start, end = to_regular(path, ends)
    inner = start + (end - start) * torch.softmax(raw, dim=0).cumsum(0)[:-1]
    return torch.cat([ends[:1], from_regular(path, inner), ends[1:]])


def raw_steps(r: Tensor) -> Tensor:
    """Raw step sizes whose softmax gives the steps of `r`; a step of zero becomes one of 1e-300. Shape: (steps,)."""
    return torch.log(((r[1:] - r[:-1]) / (r[-1] - r[0])).clamp(min=1e-300))


def check_start(family: str, init_from: str) -> None:
    """Refuse a word that names no initial grid."""
    if init_from not in STARTS:
        raise ValueError(f"init_from of {family} is {init_from!r}; known: {', '.join(STARTS)}")
