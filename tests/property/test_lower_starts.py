"""A solver that takes its noise for a state far below pure noise is played as `sample` plays it, everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from solverdistill import read_solver, sample, save_solver
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.consumers.kdiffusion import sample_learned, sigmas_of
from solverdistill.families import build
from solverdistill.noise.grids import lower_start
from solverdistill.noise.paths import make_path
from solverdistill.programs.solver_file import SolverFile
from solverdistill.teachers.mixture import toy_mixture
from tests.diffusers_networks import CONFIGS, AnalyticNetwork, NetworkDenoiser, assert_close_to_scale, run_loop
from tests.property.test_kdiffusion import GRIDS, Model, first_scale
from tests.property.test_roster import random_params

STUDENTS: dict[str, dict[str, Any]] = {"corrected": {}, "gas": {"init_from": "dpmpp"}, "epd": {"points": 2}}
KINDS = {"edm": "epsilon", "vp": "epsilon", "flow": "flow_prediction"}


@pytest.fixture(params=[(name, path) for name in STUDENTS for path in GRIDS], ids=" ".join)
def low(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[SolverFile, str]:
    """A solver.json of random params that begins where sigma / alpha is about 4, and its path."""
    name, path = request.param
    family = build(name, lower_start(GRIDS[path], make_path(path), 3.0), path, **STUDENTS[name])
    params, file = random_params(family), tmp_path / "solver.json"
    save_solver(file, family.program(params), family.hyperparameters(), params)
    return read_solver(file), path


@pytest.mark.filterwarnings("ignore:this solver starts from", "ignore:the solver asks for timestep")
def test_a_diffusers_pipeline_equals_sample(low: tuple[SolverFile, str]) -> None:
    (file, path), noise = low, torch.randn(3, 6, dtype=torch.float64)
    kind = KINDS[path]
    network = AnalyticNetwork(kind)
    expected = sample(file.program, NetworkDenoiser(network, network.schedule), noise)
    scheduler = LearnedSolverScheduler.from_solver(file.program, CONFIGS[kind])
    assert_close_to_scale(run_loop(scheduler, network, noise), expected, 1e-8)
    scheduler = LearnedSolverScheduler.from_solver(file.program, CONFIGS[kind], initial_noise="scaled")
    assert_close_to_scale(run_loop(scheduler, network, noise, calls_scale=False), expected, 1e-8)


def test_k_diffusion_equals_sample(low: tuple[SolverFile, str]) -> None:
    (file, path), noise = low, torch.randn(3, 6, dtype=torch.float64)
    start, end = first_scale(file)
    found = sample_learned(Model(path == "flow"), noise * start, sigmas_of(file), disable=True, solver=file)
    torch.testing.assert_close(found * end, sample(file.program, toy_mixture(), noise), rtol=1e-9, atol=1e-9)
