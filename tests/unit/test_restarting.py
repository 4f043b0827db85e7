"""Beginning in the middle: the rest of a table does what the scheduler for diffusers does by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from solverdistill import Grid, families, sample
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.restarting import restarted
from solverdistill.teachers.mixture import toy_mixture
from tests.diffusers_networks import CONFIGS


def make_program(name: str, **options: object) -> SolverProgram:
    family = families.build(name, Grid("flow_shift", 4, 1.0, 0.02, 2.0), "flow", **options)
    generator = torch.Generator().manual_seed(0)
    params = family.init(0)
    for key, value in params.items():
        params[key] = value + 0.03 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return family.program(params).detach()


@pytest.mark.parametrize(("name", "options"), [("epd", {"points": 2}), ("gas", {}), ("bns", {}), ("dpmpp", {})])
def test_the_rest_of_a_table_is_what_the_scheduler_plays_from_there(name: str, options: dict[str, int]) -> None:
    program, teacher = make_program(name, **options), toy_mixture()
    for k in range(1, program.nfe):
        if float(program.sigma[k]) == 0:
            continue
        rest = restarted(program, k)
        alpha, sigma = float(program.alpha[k]), float(program.sigma[k])
        state = torch.randn(3, 6, dtype=torch.float64)
        scheduler = LearnedSolverScheduler.from_solver(program, CONFIGS["flow_prediction"], initial_noise="scaled")
        scheduler.set_begin_index(k)
        x = state / (alpha + sigma)
        for j in range(k, program.nfe):
            level = torch.stack([program.alpha[j], program.sigma[j]]) / (program.alpha[j] + program.sigma[j])
            denoised = teacher(x, level[0].expand(3), level[1].expand(3))
            x = scheduler.step((x - denoised) / level[1], scheduler.timesteps[j], x).prev_sample
        told: list[Tensor] = []

        def listen(x: Tensor, a: Tensor, s: Tensor, told: list[Tensor] = told) -> Tensor:
            told.append(torch.stack([a, s], 1))
            return teacher(x, a, s)

        found = sample(rest, listen, state)
        scale = float(program.level[-1].sum())
        torch.testing.assert_close(found / scale, x, rtol=1e-5, atol=1e-5)
        assert rest.nfe == program.nfe - k and rest.depth <= program.depth
        asked = torch.cat([levels[::3] for levels in told])
        torch.testing.assert_close(asked, torch.stack([program.alpha, program.sigma], 1)[k:])


def test_points_of_a_stage_wait_for_the_first_denoised_image() -> None:
    program = make_program("epd", points=2)
    inside = next(stage for stage in program.stages if len(stage) > 1)
    rest = restarted(program, inside[0])
    assert rest.stages[:2] == ((0,), (1,))


def test_what_cannot_begin_there_is_refused() -> None:
    program = make_program("bns")
    for k in (-1, program.nfe):
        with pytest.raises(ValueError, match=f"cannot begin at {k}"):
            restarted(program, k)
    family = families.build("dpmpp", Grid(steps=3))
    with pytest.raises(ValueError, match="only those of one can"):
        restarted(family.step_program(1, family.init(0)), 0)
