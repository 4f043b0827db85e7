"""Levels and timesteps of diffusers' networks, and plain lists of levels."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from solverdistill import Grid, families
from solverdistill.consumers.network_schedule import NetworkSchedule
from solverdistill.consumers.sigma_list import sigma_list, write_sigmas
from tests.diffusers_networks import CONFIGS, AnalyticNetwork


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_levels_of_the_table_have_integer_timesteps(kind: str) -> None:
    schedule = NetworkSchedule.from_config(CONFIGS[kind])
    scheduler = DDIMScheduler(**CONFIGS[kind])
    for i in (0, 1, 2, 500, 997, 998):
        square = float(scheduler.alphas_cumprod[i])
        for scale in (1, 3):  # diffusers keeps its table in single precision
            found = schedule.timestep(scale * math.sqrt(square), scale * math.sqrt(1 - square))
            assert found == pytest.approx(i, abs=2e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_timesteps_and_levels_are_inverse(kind: str) -> None:
    schedule, network = NetworkSchedule.from_config(CONFIGS[kind]), AnalyticNetwork(kind)
    timesteps = torch.tensor([0.3, 17.75, 500.5, 997.2, 998.6, 999.0], dtype=torch.float64)
    alpha, sigma = network.level(timesteps)
    found = [schedule.timestep(a, s) for a, s in zip(alpha.tolist(), sigma.tolist(), strict=True)]
    assert found == pytest.approx(timesteps.tolist(), abs=1e-6)


def test_pure_noise_has_a_timestep_where_the_network_knows_it() -> None:
    known = ("v_prediction", "flow_prediction")
    assert [NetworkSchedule.from_config(CONFIGS[kind]).timestep(0.0, 1.0) for kind in known] == [999, 1000]
    with pytest.raises(ValueError, match="was told pure noise"):
        NetworkSchedule.from_config(CONFIGS["sample"]).timestep(0.0, 1.0)


def test_a_sigma_list_of_euler_loses_nothing() -> None:
    values = [10.0, 3.0, 1.0, 0.2]
    levels, lost = sigma_list(families.build("euler", [*values, 0.0]).program())
    assert levels == pytest.approx([*values, 0.0], rel=1e-12) and lost is None
    assert [float(word) for word in write_sigmas(levels).split(",")] == levels
    times, lost = sigma_list(families.build("euler", [1.0, 0.75, 0.5, 0.0], "flow").program(), flow=True)
    assert times == pytest.approx([1.0, 0.75, 0.5, 0.0]) and lost is None


def test_a_sigma_list_says_what_it_loses() -> None:
    _, lost = sigma_list(families.build("dpmpp", [10.0, 3.0, 1.0, 0.0]).program())
    assert lost is not None and "does not hold its coefficients" in lost and "its end" not in lost
    _, lost = sigma_list(families.build("euler", [10.0, 3.0, 1.0]).program())
    assert lost == "a list of sigmas does not hold its end at 1: the list goes on to 0"


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("heun", "edm", "repeated or parallel levels"),
        ("epd", "edm", "tells the network other levels than its states have|repeated or parallel"),
        ("euler", "flow", "starts at pure noise, which has no finite sigma"),
    ],
)
def test_a_solver_that_is_no_list_is_refused(name: str, path: str, message: str) -> None:
    grid = Grid(steps=3, start=10.0, end=0.1) if path == "edm" else Grid("flow_shift", 3, 1.0, 0.1)
    family = families.build(name, grid, path)
    with pytest.raises(ValueError, match=message):
        sigma_list(family.program(family.init(0)))
