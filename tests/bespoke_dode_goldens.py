"""Arrays and teacher of the Bespoke and D-ODE goldens (goldens/dss_bespoke_dode/README_bespoke_dode.md)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor

from solverdistill.noise.levels import float64
from solverdistill.teachers.mixture import Mixture, mixture

GOLDENS = Path(__file__).parent / "goldens" / "dss_bespoke_dode"


@cache
def golden(file: str) -> dict[str, Tensor]:
    """Arrays of one golden file as float64 tensors."""
    with np.load(GOLDENS / f"{file}.npz") as arrays:
        return {key: float64(arrays[key]) for key in arrays.files}


def golden_denoiser() -> Mixture:
    """The exact denoiser that the goldens were made with."""
    model = golden("gm_model")
    return mixture(model["mu"], model["w"], model["s"])
