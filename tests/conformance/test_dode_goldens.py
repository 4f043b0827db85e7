"""D-ODE against the official samplers and their fits (goldens/dss_bespoke_dode/README_bespoke_dode.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bespoke_dode_goldens import golden, golden_denoiser
from helpers import denoise_in, reference_states
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.learned.dode import DistilledODE
from solverdistill.fits.greedy import fit_dode
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM, Discrete, Path
from solverdistill.programs.playing import Evaluation, sample

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
EDM_STEPS, NOISE_STEPS, DPM_NFE = (5, 6, 10), (5, 10), (4, 6, 10)
TEACHER = 10  # steps of the teacher per evaluation of the student


def dode(name: str, grid: Tensor, path: str | Path = "edm", **options: Any) -> DistilledODE:
    family = build(name, grid, path, **options)
    assert isinstance(family, DistilledODE)
    return family


def play(family: DistilledODE, lambdas: Tensor, x: Tensor) -> tuple[Tensor, list[Evaluation]]:
    calls: list[Evaluation] = []
    program = family.program({"lambdas": lambdas})
    return sample(program, golden_denoiser(), x, readouts=True, callback=calls.append), calls


def assert_close_to_states(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-10 * float(expected.abs().max()))


def karras(nodes: int) -> Tensor:
    """80 to 0.002 in that many levels, and 0."""
    return torch.cat([Grid(steps=nodes - 1).values(EDM()), float64([0.0])])


def official_teacher(evaluations: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The states that the official code fits to: every tenth of an Euler solve on its own grid, with their sigma."""
    grid = karras(TEACHER * evaluations)
    states = list(build("euler", grid).solve(golden_denoiser(), noise))
    wanted = range(TEACHER, TEACHER * evaluations + 1, TEACHER)
    return torch.stack([states[i - 1] for i in wanted]), grid[list(wanted)]


@pytest.mark.parametrize("steps", EDM_STEPS)
def test_d_ddim_equals_the_official_sampler_on_edm(steps: int) -> None:
    arrays, prefix = golden("dode_edm"), f"N{steps}"
    family, lambdas = dode("dode_ddim", arrays[f"{prefix}_sigmas"]), arrays[f"{prefix}_ddim_lambda"]
    torch.testing.assert_close(float64(family.grid), karras(steps), **CLOSE)
    assert_close_to_states(play(family, lambdas, arrays["latents_test"])[0], arrays[f"{prefix}_ddim_states"])
    fitted = play(family, lambdas, arrays["latents_fit"])[0][-1]
    torch.testing.assert_close(fitted, arrays[f"{prefix}_ddim_x_fit"], **CLOSE)


@pytest.mark.parametrize("steps", EDM_STEPS)
def test_d_edm_equals_the_official_sampler(steps: int) -> None:
    """Its states are predictor, corrector, ... and last a predictor."""
    arrays, prefix = golden("dode_edm"), f"N{steps}"
    family, lambdas = dode("dode_edm", arrays[f"{prefix}_sigmas"]), arrays[f"{prefix}_edm_lambda"]
    states, calls = play(family, lambdas, arrays["latents_test"])
    expected = arrays[f"{prefix}_edm_states"]
    assert_close_to_states(states[:-1], expected[1::2])
    assert_close_to_states(states[-1], expected[-1])
    predicted = torch.stack([call.x / call.alpha for call in calls[1::2]])
    assert_close_to_states(predicted, expected[:-1:2])
    fitted = play(family, lambdas, arrays["latents_fit"])[0][-1]
    torch.testing.assert_close(fitted, arrays[f"{prefix}_edm_x_fit"], **CLOSE)
    assert family.nfe == len(calls) == 2 * steps - 1


@pytest.mark.parametrize("steps", EDM_STEPS)
@pytest.mark.parametrize("name", ["ddim", "edm"])
def test_the_fit_to_the_official_mismatched_targets_gives_the_official_lambdas(name: str, steps: int) -> None:
    arrays, prefix = golden("dode_edm"), f"N{steps}_{name}"
    family, noise = dode(f"dode_{name}", arrays[f"N{steps}_sigmas"]), arrays["latents_fit"]
    targets, sigmas = official_teacher(family.nfe, noise)
    torch.testing.assert_close(sigmas, arrays[f"{prefix}_teacher_sigma_at_target"], **CLOSE)
    student = torch.stack([level.sigma for level in family.corrected_levels()])
    assert (sigmas - student).abs().max() > 1
    lambdas = fit_dode(family, golden_denoiser(), noise, targets)["lambdas"]
    torch.testing.assert_close(lambdas, arrays[f"{prefix}_lambda"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", EDM_STEPS)
def test_the_fit_at_the_students_own_levels_gives_the_golden_lambdas(steps: int) -> None:
    arrays, noise = golden("dode_edm"), golden("dode_edm")["latents_fit"]
    family = dode("dode_ddim", arrays[f"N{steps}_sigmas"])
    nodes, substeps, tiny = torch.cat([float64(family.grid[:-1]), float64([1e-6])]), 100, float64(1e-6)
    share = torch.arange(substeps, dtype=torch.float64) / substeps
    pairs = zip(nodes.log(), nodes.log()[1:], strict=False)
    fine = [torch.exp(torch.lerp(a, b, share)) for a, b in pairs]
    states = reference_states(EDM(), golden_denoiser(), noise * 80, torch.cat([*fine, nodes[-1:]]), substeps=1)
    targets = states[substeps::substeps].clone()
    targets[-1] = denoise_in(EDM(), golden_denoiser(), targets[-1], tiny)
    lambdas = fit_dode(family, golden_denoiser(), noise, targets)["lambdas"]
    torch.testing.assert_close(lambdas, arrays[f"N{steps}_ddim_lambda_matched"], rtol=0.0, atol=2e-7)
    matched = play(family, arrays[f"N{steps}_ddim_lambda_matched"], arrays["latents_test"])[0][-1]
    torch.testing.assert_close(matched, arrays[f"N{steps}_ddim_matched_x_test"], **CLOSE)


def betas_and_clean_data() -> Discrete:
    """The network's 1000 levels below a level 0 of clean data."""
    return Discrete(alphas_cumprod=(1.0, *torch.cumprod(1 - golden("dode_noise")["betas"], dim=0).tolist()))


def noise_grid(steps: int) -> Tensor:
    return torch.cat([golden("dode_noise")[f"N{steps}_seq_reversed"] + 2, float64([1.0])]) / 1001


@pytest.mark.parametrize("steps", NOISE_STEPS)
def test_d_ddim_and_d_ipndm_equal_the_goldens_on_a_discrete_schedule(steps: int) -> None:
    arrays, prefix = golden("dode_noise"), f"N{steps}"
    for name in ("ddim", "ipndm"):
        family = dode(f"dode_{name}", noise_grid(steps), betas_and_clean_data())
        for level, value in (("alpha", family.timeline.alpha), ("sigma", family.timeline.sigma)):
            torch.testing.assert_close(value, arrays[f"{prefix}_{level}"], **CLOSE)
        states, _ = play(family, arrays[f"{prefix}_{name}_lambda"], arrays["latents_test"])
        torch.testing.assert_close(states, arrays[f"{prefix}_{name}_states"][1:], **CLOSE)


@pytest.mark.parametrize("steps", NOISE_STEPS)
def test_the_fit_on_a_discrete_schedule_gives_the_official_lambdas(steps: int) -> None:
    arrays, prefix = golden("dode_noise"), f"N{steps}"
    family = dode("dode_ddim", noise_grid(steps), betas_and_clean_data())
    targets = arrays[f"{prefix}_ddim_targets_fit"][1:]
    lambdas = fit_dode(family, golden_denoiser(), arrays["latents_fit"], targets)["lambdas"]
    torch.testing.assert_close(lambdas, arrays[f"{prefix}_ddim_lambda"], **CLOSE)


@pytest.mark.parametrize("nfe", DPM_NFE)
def test_d_dpm_solver_equals_the_official_one(nfe: int) -> None:
    arrays, prefix = golden("dode_noise"), f"dpm2_nfe{nfe}"
    path = Discrete(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    family = dode("dode_dpm", arrays[f"{prefix}_t_outer"], path)
    inner = [family.path.level(family.inner(i)) for i in range(family.steps)]
    for name, value in (
        ("alpha_mid", [level.alpha for level in inner]),
        ("sigma_mid", [level.sigma for level in inner]),
    ):
        torch.testing.assert_close(torch.cat(value), arrays[f"{prefix}_{name}"], **CLOSE)
    states, calls = play(family, arrays[f"{prefix}_lambda"], arrays["latents_test"])
    torch.testing.assert_close(states, arrays[f"{prefix}_states"][1:], **CLOSE)
    torch.testing.assert_close(states[-1], arrays[f"{prefix}_x_official"], **CLOSE)
    assert family.nfe == len(calls) == nfe


@pytest.mark.parametrize(("name", "table", "params"), [("ddim", "d_ddim_edm", "dddim"), ("edm", "d_edm", "dedm")])
def test_the_table_equals_the_golden_one(name: str, table: str, params: str) -> None:
    """Golden rows are in EDM units and act on the initial state."""
    arrays = golden("affine_programs")
    family, lambdas = dode(f"dode_{name}", arrays["edm_nodes_nv"]), arrays[f"{params}_lambda"]
    program, noise = family.program({"lambdas": lambdas}), arrays[f"{table}_x_in"] / 80
    rows = torch.cat([program.A / 80, program.B], dim=1)
    inputs = rows[: program.nfe] / program.alpha[:, None]
    torch.testing.assert_close(torch.cat([inputs, rows[-1:]]), arrays[f"{table}_A"], **CLOSE)
    told = program.sigma / program.alpha
    torch.testing.assert_close(told, arrays[f"{table}_alpha_sigma"][:-1, 1], **CLOSE)
    torch.testing.assert_close(sample(program, golden_denoiser(), noise), arrays[f"{table}_x_out"], **CLOSE)
