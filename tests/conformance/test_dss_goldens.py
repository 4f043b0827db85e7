"""DSS against the states and losses of the published classes (goldens/dss_bespoke_dode/README.md)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.base import Family, Params
from solverdistill.families.learned.dss import published_params
from solverdistill.noise.paths import VP, Flow
from solverdistill.objectives.published_dss import (
    PublishedDSS,
    end_loss,
    nearest_indices,
    nearest_states,
    trajectory_loss,
)
from solverdistill.programs.playing import Evaluation, sample
from solverdistill.references.batch import Batch
from solverdistill.references.solving import solve_reference
from solverdistill.references.trajectory import Trajectory
from solverdistill.teachers.mixture import Mixture

GOLDENS = Path(__file__).parent.parent / "goldens" / "dss_bespoke_dode"
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-12}
FLOW_SETS = [f"dcn_{n}" for n in (5, 6, 7, 8, 9, 10, 15)] + [f"sit_{n}" for n in (5, 6, 7, 8, 9, 10)]

# Largest difference between an official state and the corrected one, by number of steps.
RAW_STEP_ERROR = {5: 0.1682, 6: 0.1013, 8: 0.4511}
SECOND_UPDATE_ERROR = {5: 2.2096, 6: 2.2856, 7: 2.6689, 8: 2.5534, 9: 2.6090, 10: 2.5767}


@cache
def golden(file: str) -> dict[str, Tensor]:
    with np.load(GOLDENS / f"{file}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def denoiser(labels: list[int] | None = None) -> Mixture:
    model = golden("gm_model")
    return Mixture(model["mu"], model["w"], model["s"], labels)


def uniform(steps: int, start: float = 1.0, end: float = 0.0) -> Tensor:
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)


def dss(step_sizes: Tensor, start: float = 1.0, path: str = "flow", **options: Any) -> Family:
    """The family on a grid that is as long as the step sizes printed, which add up to 1 within 2e-4 only."""
    return build("dss", uniform(len(step_sizes), start, start - step_sizes.sum().item()), path, **options)


def play(family: Family, params: Params, x: Tensor, model: Any = None) -> tuple[Tensor, list[Evaluation]]:
    calls: list[Evaluation] = []
    states = sample(family.program(params), model or denoiser(), x, readouts=True, callback=calls.append)
    return torch.cat([x[None], states]), calls


@pytest.mark.parametrize("name", FLOW_SETS)
def test_published_flow_tables_give_the_official_states(name: str) -> None:
    arrays = golden("dss_fm_published")
    steps, x = arrays[f"{name}_dt"], arrays["x_init"]
    family, params = dss(steps), published_params(steps, arrays[f"{name}_coeffs"])
    states, calls = play(family, params, x)
    torch.testing.assert_close(states, arrays[f"{name}_states"], **CLOSE)
    if f"{name}_t2i_states" in arrays:
        torch.testing.assert_close(states, arrays[f"{name}_t2i_states"], **CLOSE)
    times = torch.tensor([call.alpha / (call.alpha + call.sigma) for call in calls], dtype=torch.float64)
    torch.testing.assert_close(times, arrays[f"{name}_t_eval"], **CLOSE)
    torch.testing.assert_close(family.prepare(params).matrix, arrays[f"{name}_M"], **CLOSE)
    assert family.nfe == family.depth == len(steps)
    renormalised = build("dss", uniform(len(steps)), "flow")
    torch.testing.assert_close(play(renormalised, params, x)[0][-1], states[-1], rtol=0.0, atol=1e-3)  # 6e-4 at most


@pytest.mark.parametrize("steps", [6, 10])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_coefficients_are_a_member_of_the_family_and_are_ipndm(order: int, steps: int) -> None:
    arrays, grid = golden("dss_fm_adams"), uniform(steps)
    family = build("dss", grid, "flow", short_tail=False)
    params = {"raw_dt": torch.zeros(steps, dtype=torch.float64), "raw_coeffs": arrays[f"o{order}_N{steps}_coeffs"]}
    official = arrays[f"o{order}_N{steps}_states"]
    torch.testing.assert_close(play(family, params, arrays["x_init"])[0], official, **CLOSE)
    ipndm = build("ipndm", grid, "flow", max_order=order)
    torch.testing.assert_close(play(ipndm, {}, arrays["x_init"])[0], official, **CLOSE)


@pytest.mark.parametrize("scale", [1.0, 1.375, 4.0])
@pytest.mark.parametrize("mode", ["simple", "c3"])
def test_guidance_on_all_or_on_the_first_channels(mode: str, scale: float) -> None:
    arrays, model = golden("dss_fm_cfg"), denoiser(labels=[0, 1, 2, 3])
    guided = slice(0, 3 if mode == "c3" else 6)

    def guide(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        conditional, free = model(x, alpha, sigma, arrays["labels"]), model(x, alpha, sigma)
        result = conditional.clone()
        result[:, guided] = (free + scale * (conditional - free))[:, guided]
        return result

    params = published_params(arrays["dt"], arrays["coeffs"])
    states, _ = play(dss(arrays["dt"]), params, arrays["x_init"], guide)
    torch.testing.assert_close(states, arrays[f"{mode}_g{scale}_states"], **CLOSE)


@pytest.mark.parametrize("steps", [5, 6, 8])
def test_the_trainable_class_integrates_with_raw_step_sizes(steps: int) -> None:
    """It stops wherever the raw sizes add up to, short of or past clean data; ours ends where the grid does."""
    arrays = {key.removeprefix(f"N{steps}_"): value for key, value in golden("dss_fm_trainable_class").items()}
    raw = {name: arrays[name] for name in ("raw_dt", "raw_coeffs")}
    defect = dss(raw["raw_dt"])
    as_published = {**raw, "raw_dt": torch.log(raw["raw_dt"])}
    torch.testing.assert_close(play(defect, as_published, arrays["x_init"])[0], arrays["states"], **CLOSE)
    family = build("dss", uniform(steps), "flow")
    values = family.prepare(raw)
    coefficients = values.matrix - torch.diag(values.matrix.diagonal())
    torch.testing.assert_close(coefficients, arrays["effective_coeffs"], **CLOSE)
    torch.testing.assert_close(1 - values.timeline.s[1:], arrays["timesteps_softmax_cumsum"], **CLOSE)
    error = (play(family, raw, arrays["x_init"])[0] - arrays["states"]).abs().max().item()
    assert error == pytest.approx(RAW_STEP_ERROR[steps], abs=1e-4)


@pytest.mark.parametrize("steps", [5, 6, 7, 8, 9, 10])
def test_published_vp_tables_give_the_states_of_the_correct_scheduler(steps: int) -> None:
    arrays = {key.removeprefix(f"N{steps}_"): value for key, value in golden("dss_vp_published").items()}
    family = dss(arrays["dt"], start=0.999, path="vp", time_floor=1e-3)
    params = published_params(arrays["dt"], arrays["coeffs"])
    states, calls = play(family, params, arrays["x_init"])
    torch.testing.assert_close(states, arrays["sched_cont_states"], **CLOSE)
    times = VP().from_half_log_snr(torch.tensor([np.log(call.alpha / call.sigma) for call in calls]))
    torch.testing.assert_close(times, arrays["sched_cont_t_eval"], **CLOSE)
    torch.testing.assert_close(family.prepare(params).matrix, arrays["M"], **CLOSE)
    assert family.prepare(params).timeline.s[-1] == 1e-3
    error = (states - arrays["asPublished_states"]).abs().max().item()
    assert error == pytest.approx(SECOND_UPDATE_ERROR[steps], abs=1e-4)


@pytest.mark.parametrize("steps", [5, 6, 7, 8, 9, 10])
def test_whole_numbers_of_timesteps_are_the_denoisers_affair(steps: int) -> None:
    """The official scheduler keeps the noise predicted at int(1000 t) and converts it with the levels of t."""
    arrays, model = golden("dss_vp_published"), denoiser()

    def truncated(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        t = torch.floor(1000 * VP().from_half_log_snr(torch.log(alpha / sigma)) + 1e-9) / 1000
        told_alpha, told_sigma = (value[:, None] for value in VP().level(t))
        noise = (x - told_alpha * model(x, told_alpha[:, 0], told_sigma[:, 0])) / told_sigma
        return (x - sigma[:, None] * noise) / alpha[:, None]

    family = dss(arrays[f"N{steps}_dt"], start=0.999, path="vp", time_floor=1e-3)
    params = published_params(arrays[f"N{steps}_dt"], arrays[f"N{steps}_coeffs"])
    states, _ = play(family, params, arrays["x_init"], truncated)
    torch.testing.assert_close(states, arrays[f"N{steps}_sched_int_states"], **CLOSE)


def reference() -> Trajectory:
    states = golden("dss_loss")["target_states"]
    clock = uniform(len(states) - 1)
    return Trajectory(Flow(), clock, states, torch.zeros_like(states))


def test_the_teacher_is_a_hundred_euler_steps() -> None:
    teacher = build("euler", uniform(100), "flow")
    solved = solve_reference(teacher, denoiser(), golden("dss_loss")["x_init"])
    torch.testing.assert_close(solved.states, reference().states, **CLOSE)


@pytest.mark.parametrize("steps", [5, 8])
def test_loss_arithmetic_equals_the_official_one(steps: int) -> None:
    arrays = {key.removeprefix(f"N{steps}_"): value for key, value in golden("dss_loss").items()}
    family = build("dss", uniform(steps), "flow")
    levels = family.prepared_levels({name: arrays[name] for name in ("raw_dt", "raw_coeffs")})[1:]
    assert torch.equal(nearest_indices(reference(), Flow(), levels), arrays["target_index"])
    source, targets = arrays["source_states"][1:], nearest_states(reference(), Flow(), levels)
    for state, target, official in zip(source, targets, arrays["trajs_iter"], strict=True):
        torch.testing.assert_close((state - target).square().mean(), official, **CLOSE)
    loss = trajectory_loss(source, targets)
    torch.testing.assert_close(loss, arrays["trajs_loss"], **CLOSE)
    torch.testing.assert_close(loss + end_loss(source[-1], targets[-1]), arrays["reweight_loss"], **CLOSE)


@pytest.mark.parametrize("steps", [5, 8])
@pytest.mark.parametrize("reweight", [False, True])
def test_the_objective_rolls_out_with_the_steps_that_it_matches_by(steps: int, reweight: bool) -> None:
    arrays = golden("dss_loss")
    params = {name: arrays[f"N{steps}_{name}"].clone().requires_grad_() for name in ("raw_dt", "raw_coeffs")}
    family, x = build("dss", uniform(steps), "flow"), arrays["x_init"]
    batch = Batch(x, x[None, :0], arrays["target_states"][-1], None, reference())
    loss = PublishedDSS(reweight)(family, params, denoiser(), batch)
    frozen = {name: value.detach() for name, value in params.items()}
    states, targets = play(family, frozen, x)[0][1:], arrays["target_states"][arrays[f"N{steps}_target_index"]]
    expected = (states - targets).square().mean(dim=(1, 2)).sum()
    if reweight:
        gap = (states[-1] - targets[-1]).abs()
        expected = expected + torch.where(gap < 1e-3, 500 * gap**2, gap - 5e-4).mean()
    torch.testing.assert_close(loss, expected, **CLOSE)
    loss.backward()
    assert all(value.grad is not None and bool((value.grad != 0).any()) for value in params.values())


def test_the_objective_needs_whole_reference_trajectories() -> None:
    family, x = build("dss", uniform(5), "flow"), golden("dss_loss")["x_init"]
    with pytest.raises(ValueError, match="whole reference trajectories"):
        PublishedDSS()(family, family.init(), denoiser(), Batch(x, x[None], x))
