"""Bespoke against independent float64 solutions of its equations (goldens/dss_bespoke_dode/README_bespoke_dode.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bespoke_dode_goldens import golden, golden_denoiser
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.base import Params
from solverdistill.families.learned.bespoke import Bespoke
from solverdistill.noise.paths import Flow
from solverdistill.objectives.rmse_bound import RMSEBound
from solverdistill.programs.playing import Evaluation, sample
from solverdistill.references.batch import Batch
from solverdistill.references.trajectory import Trajectory

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-13}
PATHS = {"fm": "flow", "cos": "cosine", "vp": "vp"}
CASES = [
    (kind, path, n, params)
    for kind in ("rk1", "rk2")
    for path in PATHS
    for n in (4, 5, 8, 10)
    for params in ("identity", "random")
]
LOSSES = [(kind, params) for kind in ("rk1", "rk2") for params in ("identity", "random")]
NAMES = ("w_time", "w_time_dot", "theta_scale", "scale_dot")


def bespoke(kind: str, path: str, n: int) -> Bespoke:
    family = build(f"bespoke_{kind}", torch.linspace(1.0, 0.0, n + 1), path)
    assert isinstance(family, Bespoke)
    return family


def raw(arrays: dict[str, Tensor], prefix: str) -> Params:
    """Params that give the constrained values of a golden."""
    time, time_dot, scale, scale_dot = (arrays[f"{prefix}_{name}"] for name in ("t", "tdot", "s", "sdot"))
    values = (time.diff(), time_dot, scale[1:].log(), scale_dot)
    return dict(zip(NAMES, values, strict=True))


@pytest.mark.parametrize(("kind", "path", "n", "params"), CASES)
def test_states_calls_and_table_equal_the_golden(kind: str, path: str, n: int, params: str) -> None:
    arrays, prefix = golden(f"bespoke_{kind}"), f"{path}_n{n}_{params}"
    family, calls = bespoke(kind, PATHS[path], n), list[Evaluation]()
    program = family.program(raw(arrays, prefix))
    states = sample(program, golden_denoiser(), arrays["x_init"], readouts=True, callback=calls.append)
    torch.testing.assert_close(states, arrays[f"{prefix}_states"][1:], **CLOSE)
    table, level = arrays[f"{prefix}_prog_A"], arrays[f"{prefix}_prog_alpha_sigma"][:-1]
    scale = level.square().sum(1).sqrt()
    rows = torch.cat([program.A, program.B], dim=1)
    torch.testing.assert_close(rows[: program.nfe, : program.nfe] * scale[:, None], table[:-1, :-1], **CLOSE)
    torch.testing.assert_close(rows[-1], table[-1], **CLOSE)
    told = torch.stack([program.alpha, program.sigma], dim=1)
    torch.testing.assert_close(told * scale[:, None], level, **EXACT)
    if kind == "rk2":
        middles = torch.stack([call.x for call in calls[1::2]])
        factor = scale[1::2] * arrays[f"{prefix}_s"][1::2]
        torch.testing.assert_close(middles * factor[:, None, None], arrays[f"{prefix}_mids"], **CLOSE)


@pytest.mark.parametrize("kind", ["rk1", "rk2"])
def test_constrained_values_equal_the_golden_and_initial_params_are_the_identity(kind: str) -> None:
    arrays = golden(f"bespoke_{kind}")
    for path, n in (("fm", 4), ("cos", 8)):
        family = bespoke(kind, PATHS[path], n)
        for params, key in ((raw(arrays, f"{path}_n{n}_random"), "random"), (family.init(0), "identity")):
            values = family.transformation(params)
            for ours, theirs in zip(values[:4], ("t", "tdot", "s", "sdot"), strict=True):
                torch.testing.assert_close(ours, arrays[f"{path}_n{n}_{key}_{theirs}"], **EXACT)


def loss_case(kind: str, params: str) -> tuple[Bespoke, Params, Batch, dict[str, Tensor]]:
    """Family, raw params, and a batch whose reference passes through the golden's true states with its own slopes."""
    prefix = f"{kind}_{params}_"
    arrays = {key.removeprefix(prefix): value for key, value in golden("bespoke_loss").items() if prefix in key}
    family, noise = bespoke(kind, "flow", 4), golden("bespoke_loss")["x_init"]
    clock, states = 1 - arrays["t"][:: family.points], arrays["gt_states"]
    slopes = [
        (state - golden_denoiser()(state, *(v.expand(len(state)) for v in (1 - u, u)))) / u
        for state, u in zip(states[:-1], clock[:-1], strict=True)
    ]
    reference = Trajectory(Flow(), clock, states, torch.stack([*slopes, torch.zeros_like(states[-1])]))
    batch = Batch(noise, states[1:], states[-1], reference=reference)
    chunks = zip(NAMES, arrays["theta_raw"].chunk(4), strict=True)
    return family, {name: chunk.clone().requires_grad_() for name, chunk in chunks}, batch, arrays


@pytest.mark.parametrize(("kind", "params"), LOSSES)
def test_rmse_bound_its_parts_and_gradients_equal_the_golden(kind: str, params: str) -> None:
    family, raw_params, batch, arrays = loss_case(kind, params)
    objective, values = RMSEBound(lipschitz=1.0), family.transformation(raw_params)
    torch.testing.assert_close(family.growth(values, 1.0).detach(), arrays["L"], **EXACT)
    torch.testing.assert_close(objective.weights(family, raw_params).detach(), arrays["M"], **EXACT)
    errors = objective.step_errors(family, raw_params, golden_denoiser(), batch)
    torch.testing.assert_close(errors.detach(), arrays["local_err_d"], **CLOSE)
    loss = objective(family, raw_params, golden_denoiser(), batch)
    torch.testing.assert_close(loss.detach(), arrays["loss"], **CLOSE)
    loss.backward()
    gradient = torch.cat([raw_params[name].grad for name in NAMES])  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(gradient, arrays["grad_theta"], rtol=0.0, atol=1e-8)
    program = family.program(raw_params).detach()
    states = sample(program, golden_denoiser(), batch.noise, readouts=True)
    torch.testing.assert_close(states, arrays["rollout_states"][1:], **CLOSE)
    error = (states[-1] - batch.end).square().mean(1).sqrt().mean()
    torch.testing.assert_close(error, arrays["global_rmse"], **CLOSE)
