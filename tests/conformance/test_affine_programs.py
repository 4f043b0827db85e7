"""Our traced tables, entry by entry, against tables derived from other code (goldens/dss_bespoke_dode/README.md).

Its two tables of distilled ODE solvers are compared where these families are, in test_dode_goldens.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.base import Evaluator, Family, History, Params, State, Timeline
from solverdistill.families.learned.decoupled import Decoupled
from solverdistill.families.learned.dss import published_params
from solverdistill.noise.paths import EDM
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.teachers.mixture import mixture

GOLDENS = Path(__file__).parent.parent / "goldens" / "dss_bespoke_dode"
CLASSICAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddim": ("euler", "edm_nodes", {}),
    "heun_edm": ("heun", "edm_nodes_nv", {}),
    "dpm2": ("dpm2", "edm_nodes", {"r": 0.5}),
    "dpmpp2m": ("dpmpp", "edm_nodes", {"order": 2, "lower_order_final": False}),
    "dpmpp3m": ("dpmpp", "edm_nodes", {"order": 3, "lower_order_final": False}),
    "ipndm4": ("ipndm", "edm_nodes", {"max_order": 4}),
    "deis_rhoab3": ("deis", "edm_nodes", {"mode": "rhoab", "max_order": 4}),
    "unipc3_bh2": ("unipc", "edm_nodes", {"order": 3, "variant": "bh2"}),
}


@cache
def golden() -> dict[str, Tensor]:
    with np.load(GOLDENS / "affine_programs.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def assert_same_table(name: str, family: Family, program: SolverProgram) -> None:
    """Golden rows live in the scale of their path and start at the initial state; ours are divided by hypot(told)."""
    table, told = golden()[f"{name}_A"], golden()[f"{name}_alpha_sigma"]
    assert program.nfe == len(table) - 1
    scale = torch.hypot(told[:-1, 0], told[:-1, 1])
    ours = torch.cat([program.A / family.initial_scale(family.prepare(family.init(0))), program.B], dim=1)
    evaluated = ours[: program.nfe] * scale[:, None]
    columns = program.nfe + 1
    for ours_row, row in zip([*evaluated, ours[-1]], table[:, :columns], strict=True):
        torch.testing.assert_close(ours_row, row, rtol=1e-12, atol=1e-13 * max(1.0, row.abs().max().item()))
    torch.testing.assert_close(program.alpha * scale, told[:-1, 0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(program.sigma * scale, told[:-1, 1], rtol=1e-12, atol=1e-15)
    with np.load(GOLDENS / "gm_model.npz") as model:
        denoiser = mixture(*(torch.from_numpy(model[key]) for key in ("mu", "w", "s")))
    x_out = golden()[f"{name}_x_out"]
    torch.testing.assert_close(sample(program, denoiser, golden()["x_unit"]), x_out, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("name", CLASSICAL)
def test_classical_tables(name: str) -> None:
    family_name, grid, options = CLASSICAL[name]
    family = build(family_name, golden()[grid], **options)
    assert_same_table(name, family, family.program())


def test_epd_table() -> None:
    r, weight, direction, time = (golden()[f"epd_{key}"] for key in ("r", "w", "scale_dir", "scale_time"))
    bound = 0.5
    family = build("epd", golden()["edm_nodes"], points=2, scale_dir=bound, scale_time=bound)
    raw = {name: 2 * torch.logit((value - 1 + bound) / (2 * bound)) for name, value in (("d", direction), ("t", time))}
    params = {"r_params": torch.logit(r), "weight_s": torch.log(weight)}
    params |= {"scale_dir_params": raw["d"], "scale_time_params": raw["t"]}
    assert_same_table("epd_k2", family, family.program(params))


@pytest.mark.parametrize(
    ("name", "path", "ends", "options"),
    [("dss_fm", "flow", (1.0, 0.0), {}), ("dss_vp", "vp", (0.999, -0.001), {"time_floor": 1e-3})],
)
def test_dss_tables(name: str, path: str, ends: tuple[float, float], options: dict[str, Any]) -> None:
    grid = torch.linspace(*ends, 7, dtype=torch.float64)
    family = build("dss", grid, path, short_tail=False, **options)
    params: Params = published_params(golden()["dss_dt"], golden()["dss_coeffs"])
    assert_same_table(name, family, family.program(params))


@dataclass(frozen=True, kw_only=True)
class GASLike(Family):
    """DDIM with free additions of all past states and outputs, evaluated at shifted levels: everything a row can hold.

    x' = (rho + a_i) x + (1 - rho) m_i + sum_{j < i} (c_ij m_j + p_ij x_j), m_i the output at sigma exp(dlt_i)
    """

    name: ClassVar[str] = "gas_like"

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Timeline) -> tuple[State, History]:
        sigma = values.sigma
        a, c, p, shift = (golden()[f"gas_{key}"] for key in ("a", "c", "p", "dlt"))
        told = values.level(i)._replace(sigma=sigma[i] * torch.exp(shift[i]))
        m, rho = Decoupled(denoise, self.path)(x, values.level(i), told), sigma[i + 1] / sigma[i]
        new = x * (rho + a[i]) + m * (1 - rho)
        for k in range(i):
            new = new + history[2 * k] * c[i, i - 1 - k] + history[2 * k + 1] * p[i, i - 1 - k]
        return new, (m, x, *history)


def test_table_with_past_states_and_told_levels() -> None:
    family = GASLike(grid=tuple(golden()["edm_nodes"].tolist()), path=EDM())
    assert_same_table("gas_like", family, family.program())
