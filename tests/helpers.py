"""Goldens, a toy problem and a reference solution shared by the tests; everything in float64 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from solverdistill.families import CLASSICAL, PUBLISHED
from solverdistill.families.base import Timeline
from solverdistill.families.classical.adams import IPNDMV
from solverdistill.families.learned.corrected import Corrected
from solverdistill.families.learned.parallel import Parallel
from solverdistill.families.learned.table import Table
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import Path as NoisePath
from solverdistill.teachers.mixture import Mixture, mixture

SHIPPED = {
    cls.name for cls in (*CLASSICAL, *PUBLISHED, Corrected, Table, Parallel)
}  # what is known of these by name is asked of them
EPD_GOLDENS = Path(__file__).parent / "goldens" / "epd"


def all_pairs(**factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of one value per factor in which any two values of different factors meet; greedy, and always the same."""
    values = [(name, i) for name, choices in factors.items() for i in range(len(choices))]
    missing = [{a, b} for a, b in combinations(values, 2) if a[0] != b[0]]
    rows = list[dict[str, Any]]()
    while missing:
        row = dict(sorted(missing[0]))
        for name in factors:
            if name not in row:
                pairs = [[{(name, i), chosen} for chosen in row.items()] for i in range(len(factors[name]))]
                met = [sum(pair in missing for pair in of_value) for of_value in pairs]
                row[name] = met.index(max(met))
        missing = [pair for pair in missing if not pair <= set(row.items())]
        rows.append({name: factors[name][i] for name, i in row.items()})
    return rows


@cache
def epd_index() -> dict[str, dict[str, Any]]:
    """Settings of every file of the `epd` goldens, by name."""
    return {entry["name"]: entry for entry in json.loads((EPD_GOLDENS / "index.json").read_text())}


def epd_names(*kinds: str, **settings: Any) -> list[str]:
    """Names of the goldens of some kinds whose settings include the given ones."""
    return [
        name
        for name, entry in epd_index().items()
        if entry["kind"] in kinds and all(entry.get(key) == value for key, value in settings.items())
    ]


@cache
def epd_golden(name: str) -> dict[str, Tensor]:
    """Arrays of one golden file as float64 tensors."""
    with np.load(EPD_GOLDENS / epd_index()[name]["file"]) as arrays:
        return {key: float64(arrays[key]) for key in arrays.files if key != "meta"}


def golden_mixture(golden: dict[str, Tensor]) -> Mixture:
    """The denoiser that a golden was made with."""
    return mixture(golden["gmm_means"], golden["gmm_weights"], golden["gmm_stds"])


def raw_params(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    """Unconstrained params of a golden under their official names."""
    return {key.removeprefix("raw_"): value for key, value in golden.items() if key.startswith("raw_")}


def denoise_in(path: NoisePath, denoiser: Any, y: Tensor, u: Tensor) -> Tensor:
    """Denoised image of a straight-coordinate state at clock u."""
    alpha, sigma = (value.expand(len(y)) for value in path.straight(u))
    return denoiser(y, alpha, sigma)


def straight_slope(path: NoisePath, denoiser: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Right-hand side dy/du of the probability-flow ODE in straight coordinates."""
    return lambda y, u: (y - denoise_in(path, denoiser, y, u)) / u


def reference_states(path: NoisePath, denoiser: Any, y: Tensor, clock: Tensor, substeps: int) -> Tensor:
    """Runge-Kutta 4 with `substeps` per interval: straight-coordinate states at all clock values. Shape: (n, *y)."""
    slope = straight_slope(path, denoiser)
    states = [y]
    for start, end in zip(clock, clock[1:], strict=False):
        h = (end - start) / substeps
        for k in range(substeps):
            u = start + k * h
            k1 = slope(y, u)
            k2 = slope(y + h / 2 * k1, u + h / 2)
            k3 = slope(y + h / 2 * k2, u + h / 2)
            k4 = slope(y + h * k3, u + h)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(y)
    return torch.stack(states)


@dataclass(frozen=True, kw_only=True)
class PublishedIPNDMV(IPNDMV):
    """iPNDM_v with the published, mistaken closed form of 3 and 4 slopes, to show what it explains."""

    name: ClassVar[str] = "published_ipndm_v"

    def weights(self, i: int, slopes: int, values: Timeline) -> Tensor:
        if slopes < 3:
            return super().weights(i, slopes, values)
        h0, h1, h2, *earlier = (values.clock[i + 1 - k] - values.clock[i - k] for k in range(slopes))
        t1 = (1 - h0**2 / (3 * h1 * (h1 + h2))) / 2
        c = [1 + h0 / (2 * h1) + t1, -h0 / (2 * h1) - (1 + h1 / h2) * t1, t1 * h1 / h2]
        for h3 in earlier:
            span = h0 * (h0 + h1) * (h0 + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
            t2 = ((1 - h0 / (3 * (h0 + h1))) / 2 + (1 - h0 / (2 * (h0 + h1))) * h0 / (6 * (h0 + h1 + h2))) * span
            q = h1 * (h1 + h2) / (h2 * (h2 + h3))
            extra = (1, -(1 + h1 / h2 + q), h1 / h2 + q * (1 + h2 / h3), -q * h1 / h2)
            c = [weight + t2 * more for weight, more in zip([*c, 0], extra, strict=True)]
        return torch.stack(c) * h0


def draw_data(teacher: Mixture, count: int, generator: torch.Generator) -> Tensor:
    """Clean samples of a mixture. Shape: (count, *sample shape), float64."""
    k = torch.multinomial(teacher.weights, count, replacement=True, generator=generator)
    noise = torch.randn(count, teacher.means.shape[1], generator=generator, dtype=torch.float64)
    return (teacher.means[k] + teacher.stds[k, None] * noise).view(count, *teacher.shape)
