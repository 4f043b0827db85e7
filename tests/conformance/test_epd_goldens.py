"""Our solvers against states, network calls and evaluation counts of the official samplers (goldens/epd/README.md)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers import (
    EPD_GOLDENS,
    PublishedIPNDMV,
    epd_golden,
    epd_index,
    epd_names,
    golden_mixture,
    raw_params,
)
from torch import Tensor

from solverdistill.denoisers.wrappers import Thresholded
from solverdistill.families import build
from solverdistill.families.base import Family
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import EDM
from solverdistill.programs.playing import Evaluation, sample

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
BUGGY = [name for name in epd_names("baseline") if epd_index()[name].get("official_bug")]
BASELINES = [name for name in epd_names("baseline") if name not in BUGGY]
LEARNED = epd_names("epd", "epd_plugin", "epd_flowmatch")

# Largest difference between an official state and ours, which is due to the official coefficients alone.
OFFICIAL_ERROR = {
    "ipndm_v3_N6": 0.5847,
    "ipndm_v3_N11": 0.3019,
    "ipndm_v4_N6_afs": 0.5731,
    "ipndm_v4_N8": 0.4136,
    "ipndm_v4_N11": 0.2994,
}


def make_family(name: str, **overrides: Any) -> Family:
    """The family of a golden on the golden's own grid."""
    entry, grid = epd_index()[name], epd_golden(name)["sigmas"]
    options: dict[str, Any] = {"afs": entry.get("afs", False), "denoise_to_zero": entry.get("denoise_to_zero", False)}
    if entry["kind"] == "baseline":
        family = "dpmpp" if name.startswith("dpmpp") else name[:5] if name.startswith("unipc") else _prefix(name)
        renamed = {"deis_mode": "mode", "max_order": "order" if family in ("dpmpp", "unipc") else "max_order"}
        keys = ("r", "max_order", "predict_x0", "lower_order_final", "variant", "deis_mode")
        options |= {renamed.get(key, key): entry[key] for key in keys if key in entry}
        return build(family, grid, **options, **overrides)
    options |= {"points": entry["K"], "scale_dir": entry["sd"], "scale_time": entry["st"]}
    options |= {"fcn": entry.get("fcn", False)}
    if entry["kind"] == "epd_plugin":
        options["max_order"] = entry["max_order"]
    family = "epd_ipndm" if entry["kind"] == "epd_plugin" else "epd"
    path = "flow" if entry["kind"] == "epd_flowmatch" else "edm"
    return build(family, grid, path, **(options | overrides))


def _prefix(name: str) -> str:
    return next(family for family in ("euler", "heun", "dpm2", "ipndm_v", "ipndm", "deis") if name.startswith(family))


def make_denoiser(name: str) -> Any:
    denoiser = golden_mixture(epd_golden(name))
    return Thresholded(denoiser) if epd_index()[name].get("dynamic_thresholding") else denoiser


def play(family: Family, denoiser: Any, golden: dict[str, Tensor]) -> tuple[Tensor, list[Evaluation]]:
    calls: list[Evaluation] = []
    program = family.program(raw_params(golden))
    return sample(program, denoiser, golden["z"], readouts=True, callback=calls.append), calls


def assert_same_calls(calls: list[Evaluation], golden: dict[str, Tensor], flow: bool) -> None:
    """Compare in the golden's scale: alpha = 1, or alpha + sigma = 1 for flow."""
    scales = [call.alpha + call.sigma if flow else call.alpha for call in calls]
    x = torch.stack([call.x / scale for call, scale in zip(calls, scales, strict=True)])
    sigma = torch.tensor([call.sigma / scale for call, scale in zip(calls, scales, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(x, golden["calls_x"], **CLOSE)
    torch.testing.assert_close(sigma[:, None].expand_as(golden["calls_sigma"]), golden["calls_sigma"], **CLOSE)


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_equals_the_official_sampler(name: str) -> None:
    golden, family = epd_golden(name), make_family(name)
    states, calls = play(family, make_denoiser(name), golden)
    torch.testing.assert_close(states, golden["states"][1:], **CLOSE)
    assert_same_calls(calls, golden, flow=False)
    if not epd_index()[name].get("dynamic_thresholding"):
        torch.testing.assert_close(torch.stack([call.denoised for call in calls]), golden["calls_D"], **CLOSE)
    assert family.nfe == family.depth == len(calls) == epd_index()[name]["nfe"]


@pytest.mark.parametrize("name", LEARNED)
def test_epd_equals_the_official_sampler(name: str) -> None:
    golden, family, entry = epd_golden(name), make_family(name), epd_index()[name]
    states, calls = play(family, make_denoiser(name), golden)
    torch.testing.assert_close(states, golden["states"][1:], **CLOSE)
    if "states_batched" in golden:
        torch.testing.assert_close(states, golden["states_batched"][1:], **CLOSE)
    assert_same_calls(calls, golden, flow=entry["kind"] == "epd_flowmatch")
    torch.testing.assert_close(torch.stack([call.denoised for call in calls]), golden["calls_D"], **CLOSE)
    assert (family.nfe, family.depth) == (entry["total_nfe"], entry["latency_nfe"])
    values = family.prepare(raw_params(golden))
    for key in ("r", "weight", "scale_dir", "scale_time"):
        torch.testing.assert_close(getattr(values, key), golden[key], rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in LEARNED if "x_denoised_to_zero" in epd_golden(name)])
def test_denoise_to_zero_equals_the_official_sampler(name: str) -> None:
    golden, family = epd_golden(name), make_family(name, denoise_to_zero=True)
    states, calls = play(family, make_denoiser(name), golden)
    torch.testing.assert_close(states[-1], golden["x_denoised_to_zero"], **CLOSE)
    assert len(calls) == family.nfe == epd_index()[name]["total_nfe"] + 1


@pytest.mark.parametrize("name", epd_names("baseline", deis_mode="tab"))
def test_deis_weights_equal_the_official_ones(name: str) -> None:
    official, family = epd_golden(name)["deis_coeffs"], make_family(name)
    for i in range(1, family.steps):
        expected = official[i][~official[i].isnan()]
        weights = family.weights(i, len(expected), family.timeline)  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(weights, expected, **CLOSE)


@pytest.mark.parametrize("name", epd_names("baseline", afs=True, dynamic_thresholding=True))
def test_thresholding_leaves_the_analytical_first_step_alone(name: str) -> None:
    """The official code may threshold it too; at sigma_max = 80 it lies inside [-1, 1], where that changes nothing."""
    x = epd_golden(name)["x_T"]
    sigma = epd_golden(name)["sigmas"][0]
    analytical = x - sigma * x / torch.sqrt(1 + sigma**2)
    assert analytical.abs().max() < 0.02
    identity = Thresholded(lambda x, alpha, sigma, cond=None: x)
    torch.testing.assert_close(identity(analytical, torch.ones(8), sigma.expand(8)), analytical, **CLOSE)


@pytest.mark.parametrize("name", BUGGY)
def test_official_ipndm_v_differs_by_its_coefficients_alone(name: str) -> None:
    golden, family = epd_golden(name), make_family(name)
    states, calls = play(family, make_denoiser(name), golden)
    torch.testing.assert_close(states[:2], golden["states"][1:3], **CLOSE)
    assert (states - golden["states"][1:]).abs().max().item() == pytest.approx(OFFICIAL_ERROR[name], abs=1e-4)
    assert len(calls) == epd_index()[name]["nfe"]
    official = PublishedIPNDMV(grid=family.grid, path=EDM(), afs=family.afs, max_order=family.max_order)  # pyright: ignore
    torch.testing.assert_close(play(official, make_denoiser(name), golden)[0], golden["states"][1:], **CLOSE)


def test_settings_that_fail_officially_work() -> None:
    cases = [case["case"] for case in json.loads((EPD_GOLDENS / "official_failures.json").read_text())]
    for case in cases:
        family, steps = case.rsplit("_N", 1)
        kind = "time_uniform" if family.startswith("deis") else "polynomial"
        grid = Grid(kind=kind, steps=int(steps) - 1, rho=2.0 if family.startswith("deis") else 7.0)
        if family.startswith("deis"):
            ours, same = build("deis", grid, mode="rhoab", max_order=3), build("ipndm_v", grid, max_order=3)
        else:
            ours, same = build(family[:-1], grid, max_order=int(family[-1])), build("euler", grid)
        for name in ("A", "B"):
            torch.testing.assert_close(getattr(ours.program(), name), getattr(same.program(), name), **CLOSE)


@pytest.mark.parametrize("name", epd_names("epd_teacher"))
def test_teacher_trajectories_equal_the_official_ones(name: str) -> None:
    """Each interval of the teacher's grid is one step, or two through a polynomial grid of three levels."""
    golden, entry = epd_golden(name), epd_index()[name]
    substeps, levels = entry["inner_steps"] - 1, golden["sigmas"].tolist()
    inner = [Grid(steps=substeps, start=a, end=b) for a, b in zip(levels, levels[1:], strict=False)]
    grid = [levels[0]] + [s for rule in inner for s in rule.values(EDM())[1:].tolist()]
    family = build("heun" if entry["teacher"] == "heun" else "dpm2", grid)
    states, calls = play(family, make_denoiser(name), golden)
    torch.testing.assert_close(states[substeps - 1 :: substeps], golden["states"][1:], **CLOSE)
    rows = [index - 1 for index in entry["slice"]]
    torch.testing.assert_close(states[substeps - 1 :: substeps][rows], golden["targets"], **CLOSE)
    assert len(calls) == entry["denoiser_calls"]


@pytest.mark.parametrize("iteration", [0, 1, 2])
def test_training_states_loss_and_gradients_equal_the_official_ones(iteration: int) -> None:
    """At fewer than six levels the official loop back-propagates the last loss alone, through the whole chain."""
    name = "epd_train_a_epd_N4_K2"
    golden, family = epd_golden(name), make_family(name)
    params = raw_params(golden)
    if iteration:
        params = {key: golden[f"it{iteration - 1}_after_{key}"] for key in params}
    params = {key: value.clone().requires_grad_() for key, value in params.items()}
    states = sample(family.program(params), golden_mixture(golden), golden["z_iters"][iteration], readouts=True)
    images, targets = ((127.5 * x + 128).clip(0, 255) for x in (states[-1], golden[f"it{iteration}_teacher"][-1]))
    for i, state in enumerate((*states[:-1], images)):
        torch.testing.assert_close(state, golden[f"it{iteration}_step{i}_student"], **CLOSE)
    loss = epd_index()[name]["alpha"] * (images - targets).square().mean() * states[-1][0].numel()
    torch.testing.assert_close(loss, golden[f"it{iteration}_step2_loss_sum_over_batch"], rtol=1e-9, atol=0.0)
    loss.backward()
    for key, value in params.items():
        torch.testing.assert_close(value.grad, golden[f"it{iteration}_step2_grad_{key}"], rtol=1e-8, atol=1e-8)
