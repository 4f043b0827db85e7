"""Goldens of GAS and LD3, and the solvers and denoisers that they belong to."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solverdistill.families.classical.unipc import UniPC
from solverdistill.families.learned.gas import GAS
from solverdistill.families.learned.ld3 import LD3
from solverdistill.noise.grids import Grid, grid_values
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM, VP, Discrete
from solverdistill.noise.paths import Path as NoisePath
from solverdistill.teachers.mixture import Mixture, mixture

FOLDER = Path(__file__).parent / "goldens" / "gas"
BASES = {"uni_pc": "unipc", "dpm_solver++": "dpmpp", "dpm_solver": "dpm2", "ipndm": "ipndm", "euler": "euler"}
LD3_RANGE = {"edm": (80.0, 0.002), "ldm": (1.0, 1e-3)}


@cache
def golden(name: str) -> dict[str, Any]:
    """Arrays of a file as float64 tensors, words and flags as they are."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: _convert(arrays[key]) for key in arrays.files}


def _convert(value: np.ndarray) -> Any:
    if value.ndim == 0:
        return value.item()
    return torch.from_numpy(value) if value.dtype.kind == "i" else float64(torch.from_numpy(value))


def names(pattern: str) -> list[str]:
    """Files that match a pattern."""
    return sorted(path.stem for path in FOLDER.glob(f"{pattern}.npz"))


def params_of(arrays: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """Tensors under a prefix, by the rest of their name."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def denoiser_of(arrays: dict[str, Any]) -> Mixture:
    """The denoiser a golden was made with; every component is a class of its own."""
    components = range(len(arrays["gm_weights"]))
    return mixture(arrays["gm_means"], arrays["gm_weights"], arrays["gm_stds"], labels=list(components))


class Tabulated(Discrete):
    """The discrete schedule on given tables (rounded to float32, times included, by the official code)."""

    arrays: dict[str, Any]

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        return self.arrays["ns_t_array"], self.arrays["ns_log_alpha_array"]


def gs_path(arrays: dict[str, Any]) -> NoisePath:
    if arrays["kind"] == "edm":
        return VP(arrays["vp_beta_0"], arrays["vp_beta_1"])
    if arrays["kind"] == "ldm64":
        return Discrete()
    path = Tabulated()
    object.__setattr__(path, "arrays", arrays)
    return path


def gs_family(arrays: dict[str, Any], **options: Any) -> GAS:
    """The solver of a `gs_*` golden, with its published initialisation."""
    grid = grid_values(Grid("time_uniform", arrays["steps"], 1.0, arrays["t_eps"]), VP())
    settings = {"order": arrays["order"], "use_theory_coef": arrays["use_theory_coef"], "init_from": "paper"}
    return GAS(grid=grid, path=gs_path(arrays), **{**settings, **options})


def ld3_family(kind: str, steps: int, base: str, order: int | None, variant: str | None, **options: Any) -> LD3:
    """A solver of the `ld3_*` goldens; `kind` is edm or ldm, its initialisation the published one."""
    path = EDM() if kind == "edm" else Discrete()
    rule = Grid("logsnr" if kind == "edm" else "time_uniform", steps, *LD3_RANGE[kind])
    settings = {"base": base, "order": order, "variant": variant, "init_from": "paper", **options}
    return LD3(grid=grid_values(rule, path), path=path, **settings)


def ld3_family_of(arrays: dict[str, Any]) -> LD3:
    """The solver of a sampling golden."""
    base = BASES[arrays["solver"]]
    order = None if base in ("euler", "dpm2") else arrays["order"]
    kind = "edm" if arrays["time_mode"] == "lambda" else "ldm"
    return ld3_family(kind, arrays["steps"], base, order, arrays["variant"] or None)


class PublishedUniPC(UniPC):
    """UniPC whose matrix of step ratios is a constant, as in the official LD3 code: same values, wrong gradients."""

    def _equations(self, r: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrix, rhs, B = super()._equations(r, z)
        return matrix.detach(), rhs, B


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest deviation over the largest entry."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
