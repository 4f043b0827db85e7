"""Solvers and grids that people run today against tables of the official code."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solverdistill.families import ALIASES, ROSTER, build
from solverdistill.families.base import Family
from solverdistill.families.classical.dpm_single import fast_orders
from solverdistill.noise.grids import KINDS, Grid, grid_values
from solverdistill.noise.grids_in_use import AYS, IN_USE, between, continuous, levels_in_use, of_flow
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM, Discrete, Flow, make_path

FOLDER = Path(__file__).parents[1] / "goldens" / "in_use"
SETTINGS: dict[str, dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())
OPTIONS = {"order": "max_order", "ge_gamma": "gamma"}
STOCHASTIC: dict[str, dict[str, Any]] = {
    "er_sde": {"sum_points": 100},
    "sa_solver": {"order": 2, "corrector_order": 2, "replace_order_2": True},
}


@cache
def arrays(file: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / file) as stored:
        return {key: torch.from_numpy(np.atleast_1d(stored[key])) for key in stored}


def called(name: str) -> torch.Tensor:
    tables = arrays("tables.npz")
    return torch.stack([tables[f"{name}|calls_alpha"], tables[f"{name}|calls_sigma"]], dim=1)


def single_step(name: str, given: dict[str, Any]) -> Family:
    """On the levels of all evaluations for mixed orders, of whole steps for one order."""
    path, alpha_sigma = make_path(given["path"]), called(name)
    levels = path.from_half_log_snr(torch.log(alpha_sigma[:, 0] / alpha_sigma[:, 1])).tolist()
    levels = [given["t_start"], *levels[1:], given["t_end"]]
    data, order = given["algorithm"] == "dpmsolver++", given["order"]
    taylor = given["solver_type"] == "taylor"
    if given["method"] == "singlestep_fixed":
        return build(f"{'dpmpp' if data else 'dpm'}_{order}s", levels[::order], path, taylor=taylor)
    assert fast_orders(len(levels) - 1, order) == given["orders"]
    return build("dpm_fast", levels, path, order=order, predict_x0=data, taylor=taylor)


def family_of(name: str) -> Family:
    given, tables = SETTINGS[name], arrays("tables.npz")
    if "algorithm" in given:
        return single_step(name, given)
    sampler, sigmas = given["sampler"], tables[f"{name}|sigmas"].tolist()
    if sampler == "dpm_fast":
        return build(sampler, Grid("dpm_fast", len(called(name)), max(sigmas), min(sigmas)))
    options = {OPTIONS.get(key, key): value for key, value in given.get("options", {}).items() if key != "eta"}
    return build(sampler, sigmas, given["path"], **options, **STOCHASTIC.get(sampler, {}))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_family_has_the_official_table(name: str) -> None:
    tables, program, told = arrays("tables.npz"), family_of(name).program(), called(name)
    size = torch.hypot(*told.unbind(1))[:, None]
    torch.testing.assert_close(torch.stack([program.alpha, program.sigma], dim=1), told / size, rtol=1e-12, atol=1e-15)
    unit = 1.0 if SETTINGS[name].get("sampler") in STOCHASTIC else float(told[0, 1]) if told[0, 0] > 0 else 1.0
    if SETTINGS[name]["path"] == "vp":
        unit = 1.0
    nfe = program.nfe
    ours = torch.cat([program.A, program.B], dim=1)
    official = torch.cat([tables[f"{name}|table_A"] * unit, tables[f"{name}|table_B"]], dim=1) / size
    last = tables[f"{name}|last"].clone()
    last[0] *= unit
    for got, expected in [*zip(ours[:nfe], official, strict=True), (ours[-1], last)]:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def test_other_names() -> None:
    levels = [10.0, 3.0, 1.0, 0.0]
    for other, own in ALIASES.items():
        assert build(other, levels) == build(own, levels) and own in ROSTER
    for other, own, options in (  # samplers of the SDE without noise, and what equals what
        ("res_2s", "dpmpp_2s", {"taylor": True}),
        ("dpm_2", "dpm_2s", {}),
        ("dpm_fast", "dpm_fast", {}),
    ):
        programs = build(other, levels).program(), build(own, levels, **options).program()
        torch.testing.assert_close(programs[0].B, programs[1].B, rtol=1e-12, atol=1e-12)


def trained(model: str, kind: str) -> Any:
    """The levels of a golden's network."""
    if model == "edm_120":
        return continuous(120.0, 0.002)
    if model == "sd15":
        clock = Discrete().clock(torch.arange(1, 1001, dtype=torch.float64) / 1000)
        return between(clock, float(clock[-1]), float(clock[0]))
    shift, count = (3.0, 1000) if model == "sd3_shift3" else (math.exp(1.15), 10_000)
    found = of_flow(shift, 1.0, 0.0, count)
    return found._replace(smallest=float(found.sigmas[0]))


@pytest.mark.parametrize("kind", sorted(set(IN_USE) - set(AYS)))
def test_a_grid_has_the_official_levels(kind: str) -> None:
    compared = 0
    for key, official in arrays("grids.npz").items():
        name, model, count, *rounded = key.split("|")  # some are there as ComfyUI has them, in float32, too
        if rounded or name != kind or not bool(official.isfinite().all()) or (kind, count) == ("bong_tangent", "1"):
            continue
        steps = len(official) - 1 if kind in ("laplace", "ddim_uniform") else int(count)
        if kind == "ddim_uniform" and steps != int(count):
            with pytest.raises(ValueError, match=f"a ddim_uniform grid of {count} steps has {steps}"):
                levels_in_use(kind, trained(model, kind), int(count))
            continue
        if steps < 1:
            continue
        scale = float(trained(model, kind).largest) if kind == "bong_tangent" else 1.0  # ours is scaled to the model
        torch.testing.assert_close(
            levels_in_use(kind, trained(model, kind), steps), official * scale, rtol=1e-13, atol=1e-17
        )
        compared += 1
    assert compared >= 18


@pytest.mark.parametrize("kind", sorted(IN_USE))
@pytest.mark.parametrize(
    ("path", "start", "end"), [("edm", 80.0, 0.002), ("flow", 1.0, 0.0), ("vp", 1.0, 1e-3), ("discrete", 1.0, 1e-3)]
)
def test_a_grid_of_every_kind_carries_a_solver_to_clean_data(kind: str, path: str, start: float, end: float) -> None:
    if (kind, path) in {("laplace", "flow"), ("ays_svd", "discrete")}:  # repeats its start; begins above the schedule
        with pytest.raises(ValueError, match="not strictly decreasing|is no time of the discrete path"):
            grid_values(Grid(kind, 5, start, end), make_path(path))
        return
    family = build("dpmpp", Grid(kind, 5, start, end), path)
    level = family.program().level[-1]
    assert family.steps == 5
    if kind != "laplace":
        torch.testing.assert_close(level, float64([1.0, 0.0]), rtol=0, atol=1e-12)


def test_grids_know_the_network_s_own_levels() -> None:
    discrete, schedule = Discrete(), {"name": "discrete"}
    on_edm = Grid("normal", 7, 80.0, 0.002, schedule=schedule).values(EDM())
    torch.testing.assert_close(
        discrete.clock(Grid("normal", 7, 1.0, 1e-3).values(discrete)), on_edm, rtol=1e-9, atol=1e-9
    )
    shifted = Grid("simple", 5, 1.0, 0.0, shift=3.0).values(Flow())
    own = Flow(3.0)
    torch.testing.assert_close(own.sigma(Grid("simple", 5, 1.0, 0.0).values(own)), shifted, rtol=1e-12, atol=0)
    flow, edm = (
        Grid("ays_sd15", 10, *ends).values(path) for path, ends in ((Flow(), (1.0, 0.0)), (EDM(), (80.0, 0.002)))
    )
    torch.testing.assert_close(flow[:-1] / (1 - flow[:-1]), edm[:-1], rtol=1e-12, atol=0)
    torch.testing.assert_close(edm[:-1], float64(AYS["ays_sd15"])[:-1], rtol=1e-12, atol=0)
    assert set(IN_USE) < set(KINDS)
    with pytest.raises(ValueError, match="needs end > 0, the level before the final 0"):
        Grid("karras", 4, 80.0, 0.0).values(EDM())
