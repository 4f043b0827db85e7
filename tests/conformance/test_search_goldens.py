"""Searched grids against those of the official searches (goldens/epd/README.md, goldens/dss_bespoke_dode/README.md)."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch
from helpers import EPD_GOLDENS, epd_golden, epd_index, epd_names, golden_mixture, straight_slope
from torch import Tensor

from solverdistill.families import build
from solverdistill.fits.grid_search.search import (
    cheapest_path,
    insert_analytical_step,
    jump_costs,
    median_steps,
    optimal_steps,
)
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM, Flow
from solverdistill.references.solving import solve_reference
from solverdistill.references.trajectory import Trajectory
from solverdistill.teachers.mixture import Mixture, mixture

SEARCHES = epd_names("gits")
OSS_GOLDENS = EPD_GOLDENS.parent / "dss_bespoke_dode"
OSS_CASES = [(50, 5), (100, 5), (100, 10)]


def published_reference(name: str) -> Trajectory:
    """The official trajectory itself; nothing reads its last slope."""
    golden = epd_golden(name)
    slopes = torch.cat([golden["teacher_eps"], torch.full_like(golden["teacher_eps"][:1], torch.nan)])
    return Trajectory(EDM(), golden["sigmas"], golden["teacher_states"], slopes)


def chosen_by(costs: Tensor, name: str) -> dict[str, list[int]]:
    """Our choice for every list of a golden."""
    chosen = {}
    for key in epd_golden(name):
        if found := re.fullmatch(r"dp_N(\d+)_coeff([\d.]+)", key):
            chosen[key] = cheapest_path(costs, int(found[1]) - 1, float(found[2]))
    return chosen


def test_all_searches_are_here() -> None:
    assert SEARCHES == ["gits_dev_NT21", "gits_l1_NT61", "gits_l2_NT21"]


@pytest.mark.parametrize("name", SEARCHES)
def test_gits_costs_and_indices_equal_the_official_ones(name: str) -> None:
    golden = epd_golden(name)
    costs = jump_costs(published_reference(name), epd_index()[name]["metric"])
    torch.testing.assert_close(costs, golden["cost"], rtol=0.0, atol=1e-12)
    chosen = chosen_by(costs, name)
    assert len(chosen) == 24
    assert chosen == {key: golden[key].tolist() for key in chosen}


@pytest.mark.parametrize("name", SEARCHES)
def test_our_own_reference_leads_to_the_official_indices(name: str) -> None:
    golden, entry = epd_golden(name), epd_index()[name]
    family = build("ipndm", Grid(steps=entry["num_steps_tea"] - 1, rho=entry["rho"]), max_order=entry["max_order"])
    reference = solve_reference(family, golden_mixture(golden), golden["z"])
    torch.testing.assert_close(reference.states, golden["teacher_states"], rtol=0.0, atol=1e-10)
    torch.testing.assert_close(reference.slopes[:-1], golden["teacher_eps"], rtol=0.0, atol=1e-10)
    chosen = chosen_by(jump_costs(reference, entry["metric"]), name)
    assert chosen == {key: golden[key].tolist() for key in chosen}


def test_gits_finds_the_official_grid_of_the_sampler() -> None:
    golden = epd_golden("gits_sample_ipndm_NT61")
    costs = jump_costs(published_reference("gits_l1_NT61"), "dev")
    assert cheapest_path(costs, 5, gamma=1.15) == golden["dp_list"].int().tolist()


@pytest.mark.parametrize(("family", "key"), [("ipndm", "states"), ("euler", "states_euler")])
def test_solvers_on_the_searched_grid_equal_the_official_ones(family: str, key: str) -> None:
    golden = epd_golden("gits_sample_ipndm_NT61")
    fine = Grid(steps=60).values(EDM())
    levels = fine[golden["dp_list"].long()]
    torch.testing.assert_close(levels, golden["sigmas"], rtol=1e-12, atol=0.0)
    states = torch.stack([*build(family, levels).solve(golden_mixture(golden), golden["z"])])
    torch.testing.assert_close(states, golden[key][1:], rtol=0.0, atol=1e-10)


def test_published_afs_indices_come_from_a_teacher_with_an_analytical_first_step() -> None:
    """The official option changes the teacher too; the search then begins at point 1 and has no room to insert."""
    golden, search = epd_golden("gits_sample_ipndm_NT61"), epd_golden("gits_l1_NT61")
    denoiser, noise, sigmas = golden_mixture(search), search["z"], search["sigmas"]
    family = build("ipndm", sigmas, afs=True)
    states = torch.stack([noise * sigmas[0], *family.solve(denoiser, noise)])
    slope = straight_slope(EDM(), denoiser)
    slopes = torch.stack([slope(y, u) for y, u in zip(states, sigmas, strict=True)])
    slopes[0] = states[0] / torch.hypot(torch.ones_like(sigmas[0]), sigmas[0])
    reference = Trajectory(EDM(), sigmas, states, slopes)
    indices = cheapest_path(jump_costs(reference), 5, gamma=1.15)
    assert indices == golden["dp_list_afs"].int().tolist()
    assert insert_analytical_step(reference, sigmas.tolist(), indices, noise, denoiser) == indices


@cache
def oss_golden() -> dict[str, Tensor]:
    with np.load(OSS_GOLDENS / "oss.npz") as arrays:
        return {key: torch.as_tensor(arrays[key]) for key in arrays.files}


def oss_denoiser() -> Mixture:
    with np.load(OSS_GOLDENS / "gm_model.npz") as arrays:
        return mixture(*(float64(arrays[key]) for key in ("mu", "w", "s")))


def oss_reference(steps: int) -> Trajectory:
    family = build("euler", torch.linspace(1, 0, steps + 1, dtype=torch.float64), "flow")
    return solve_reference(family, oss_denoiser(), oss_golden()["z"])


@pytest.mark.parametrize(("fine", "steps"), OSS_CASES)
def test_oss_indices_equal_the_official_ones(fine: int, steps: int) -> None:
    """Official indices count from clean data and leave the last point out."""
    golden, reference = oss_golden(), oss_reference(fine)
    torch.testing.assert_close(reference.end(), golden[f"N{fine}_teacher"], rtol=0.0, atol=1e-12)
    paths = optimal_steps(reference, oss_denoiser(), steps, free_start=True)
    for key in ("each", "each_batchvariant"):
        assert torch.equal((fine - paths[:, :-1]).flip(1), golden[f"N{fine}_K{steps}_steps_{key}"])
    median = [fine - k for k in reversed(median_steps(paths))]
    assert median == [0, *golden[f"N{fine}_K{steps}_steps_median"].tolist()]


@pytest.mark.parametrize(("fine", "steps"), OSS_CASES)
def test_images_of_oss_steps_equal_the_official_ones(fine: int, steps: int) -> None:
    """The official sampler takes the unit noise for the state wherever the first step begins."""
    golden = oss_golden()
    paths = optimal_steps(oss_reference(fine), oss_denoiser(), steps, free_start=True)
    each = torch.cat([play(fine, paths[b].tolist(), golden["z"][b : b + 1]) for b in range(len(paths))])
    torch.testing.assert_close(each, golden[f"N{fine}_K{steps}_x_each"], rtol=0.0, atol=1e-10)
    median = play(fine, median_steps(paths), golden["z"])
    torch.testing.assert_close(median, golden[f"N{fine}_K{steps}_x_median"], rtol=0.0, atol=1e-10)


def play(fine: int, path: list[int], z: Tensor) -> Tensor:
    levels = [1 - i / fine for i in path]
    family = build("euler", levels, Flow())
    *_, end = family.solve(oss_denoiser(), z / levels[0])
    return end
