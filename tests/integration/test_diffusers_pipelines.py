"""Unmodified diffusers pipelines with tiny random networks play a solver as `sample` does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill import Grid, families, sample
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.consumers.diffusers_config import find_network
from solverdistill.programs.program import SolverProgram
from tests import tiny_diffusion_pipelines as diffusion
from tests import tiny_flow_pipelines as flow
from tests.diffusers_networks import NetworkDenoiser, assert_close_to_scale, scale_error
from tests.tiny_pipelines import BATCH, Case

PIPELINES = {
    "DDPM": diffusion.make_ddpm,
    "DiT": diffusion.make_dit,
    "SD": diffusion.make_sd,
    "SD-zero-SNR": diffusion.make_sd_zero_snr,
    "SDXL": diffusion.make_sdxl,
    "PixArt": diffusion.make_pixart,
    "SD3": flow.make_sd3,
    "FLUX": flow.make_flux,
}
FAMILIES: dict[str, dict[str, Any]] = {"epd": {"points": 2}, "gas": {}, "dss": {}, "unipc": {"order": 2}}
PATHS: dict[str, tuple[str, Grid]] = {
    "epsilon": ("vp", Grid(kind="time_uniform", steps=3, start=0.98, end=0.02)),
    "v_prediction": ("flow", Grid(kind="flow_shift", steps=3, start=1.0, end=0.05)),
    "flow_prediction": ("flow", Grid(kind="flow_shift", steps=3, start=1.0, end=0.05, shift=3.0)),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:the solver asks for timestep", "ignore:this solver starts from"
)


@pytest.fixture(autouse=True)
def quiet() -> None:
    """diffusers logs what it thinks of pipelines without tokenizers."""
    from diffusers.utils import logging

    logging.set_verbosity_error()


def make_solver(family: str, kind: str, path: str | None = None) -> SolverProgram:
    path, grid = PATHS[kind] if path is None else (path, Grid(steps=3, start=40.0, end=0.05))
    made = families.build(family, grid, path, **FAMILIES[family])
    return made.program(made.init(1))


def make_case(name: str, program: SolverProgram | None, dtype: torch.dtype = torch.float32) -> tuple[Case, Any]:
    """A pipeline that plays a program, and its network as a denoiser."""
    case = PIPELINES[name](dtype)
    case.pipe.set_progress_bar_config(disable=True)
    network = find_network(case.pipe, None)
    if program is not None:
        case.pipe.scheduler = LearnedSolverScheduler.from_solver(program, case.pipe)
    return case, NetworkDenoiser(lambda x, timestep: case.network(x.to(dtype), timestep), network)


def reference(program: SolverProgram, case: Case, denoiser: Any) -> Tensor:
    with torch.no_grad():
        return sample(program, denoiser, case.noise.float(), stage_batch=BATCH)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_equals_sample(name: str, family: str) -> None:
    program = make_solver(family, PIPELINES[name](torch.float32).kind)
    case, denoiser = make_case(name, program)
    expected = reference(program, case, denoiser)
    first = case.call()[:BATCH]
    assert_close_to_scale(first, expected, 1e-5)
    assert torch.equal(first, case.call()[:BATCH])


@pytest.mark.parametrize("name", PIPELINES)
def test_the_networks_tell_timesteps_apart(name: str) -> None:
    """So that the equality above is worth something: 10 timesteps off are seen."""
    program = make_solver("epd", PIPELINES[name](torch.float32).kind)
    case, denoiser = make_case(name, program)
    expected, network = reference(program, case, denoiser), denoiser.network
    denoiser.network = lambda x, timestep: network(x, timestep - 10)
    assert scale_error(reference(program, case, denoiser), expected) > 1e-3


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_in_bfloat16_equals_sample_with_its_network(name: str) -> None:
    """States are kept in single precision; what differs is what the pipeline rounds: its guidance and its result."""
    program = make_solver("epd", PIPELINES[name](torch.float32).kind)
    case, denoiser = make_case(name, program, torch.bfloat16)
    assert_close_to_scale(case.call()[:BATCH], reference(program, case, denoiser), 1e-2)


@pytest.mark.parametrize(("name", "exact"), [("SD", True), ("DiT", True), ("DDPM", False), ("SD3", False)])
def test_a_first_state_below_unit_noise(name: str, exact: bool) -> None:
    """Exact in pipelines that scale; in the others only the network's first input is off, by 2.5 % in SD3 here."""
    program = make_solver("gas", "", path="edm")
    case, denoiser = make_case(name, program)
    assert case.pipe.scheduler.first_scale < 0.9997
    assert_close_to_scale(case.call()[:BATCH], reference(program, case, denoiser), 1e-5 if exact else 5e-3)


def test_scaled_latents_are_exact_in_a_flow_pipeline() -> None:
    program = make_solver("gas", "", path="edm")
    case, denoiser = make_case("SD3", None)
    expected = reference(program, case, denoiser)
    case.pipe.scheduler = LearnedSolverScheduler.from_solver(program, case.pipe, initial_noise="scaled")
    case.noise.mul_(case.pipe.scheduler.init_noise_sigma)
    assert_close_to_scale(case.call(), expected, 1e-5)


@pytest.mark.parametrize(("name", "steps"), [("DDPM", 7), ("SD", 7), ("SD3", 7)])
def test_the_classical_table_is_the_scheduler_of_diffusers(name: str, steps: int) -> None:
    """Euler's table on the levels of DDIM and of the flow-matching Euler scheduler gives their images."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    case, denoiser = make_case(name, None)
    if denoiser.schedule.is_flow:
        theirs: Any = FlowMatchEulerDiscreteScheduler.from_config(case.pipe.scheduler.config)
        theirs.set_timesteps(steps)
        program = families.build("ddim", theirs.sigmas.double(), "flow").program()
    else:
        theirs = DDIMScheduler.from_config(case.pipe.scheduler.config, clip_sample=False)
        theirs.set_timesteps(steps)
        squares = theirs.alphas_cumprod.double()[theirs.timesteps]
        program = families.build("ddim", [*torch.sqrt((1 - squares) / squares).tolist(), 0.0], "edm").program()
    theirs.nfe = steps
    case.pipe.scheduler = theirs
    expected = case.call()
    case.pipe.scheduler = LearnedSolverScheduler.from_solver(program, theirs, initial_noise="scaled")
    if name == "SD":  # multiplies by init_noise_sigma, which is 1 for DDIM
        case.noise.div_(case.pipe.scheduler.init_noise_sigma)
    assert_close_to_scale(case.call(), expected, 1e-5)
