"""Every family, played by the loop of a diffusers pipeline, equals `sample`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from solverdistill import sample
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.families import build
from solverdistill.noise.grids import Grid
from solverdistill.programs.program import SolverProgram
from tests.diffusers_networks import CONFIGS, AnalyticNetwork, NetworkDenoiser, assert_close_to_scale, run_loop
from tests.property.test_roster import every_family, random_params

STEPS = 4
GRIDS = {
    "edm": Grid(steps=STEPS, start=60.0, end=0.03),
    "flow": Grid(kind="flow_shift", steps=STEPS, start=1.0, end=0.03, shift=3.0),
    "vp": Grid(kind="time_uniform", steps=STEPS, start=0.95, end=1e-2),
}
# v and flow networks meet pure noise, alpha = 0, on the flow path; an eps network is never asked there.
PAIRS = [("epsilon", "edm"), ("v_prediction", "flow"), ("flow_prediction", "flow")]


def make_program(name: str, options: dict[str, Any], path: str) -> SolverProgram:
    family = build(name, GRIDS[path], path, **options)
    return family.program(random_params(family))


@pytest.mark.filterwarnings("ignore:the solver asks for timestep", "ignore:this solver starts from")
@pytest.mark.parametrize(("kind", "path"), PAIRS)
@every_family
def test_a_pipeline_equals_sample(name: str, options: dict[str, Any], kind: str, path: str) -> None:
    program, network = make_program(name, options, path), AnalyticNetwork(kind)
    scheduler = LearnedSolverScheduler.from_solver(program, CONFIGS[kind])
    noise = torch.randn(3, 6, dtype=torch.float64)
    denoiser = NetworkDenoiser(network, network.schedule)
    expected = sample(program, denoiser, noise)
    network.calls = 0
    assert_close_to_scale(run_loop(scheduler, network, noise), expected, 1e-8)
    assert network.calls == program.nfe == len(scheduler.timesteps)
    # in single precision, in a pipeline that multiplies its noise, whether it scales or not
    scheduler = LearnedSolverScheduler.from_solver(program, CONFIGS[kind], initial_noise="scaled")
    found = run_loop(scheduler, network, noise.float(), calls_scale=kind == "epsilon")
    assert_close_to_scale(found, sample(program, denoiser, noise.float()), 1e-5)
