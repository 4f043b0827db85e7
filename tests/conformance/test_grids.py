"""Grids and the discrete path against the official schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import epd_golden, epd_index

from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import EDM, Discrete

GOLDEN = "schedules_f64"
CASES = {case["key"]: case for case in epd_index()[GOLDEN]["cases"]}
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 0.0}


def discrete() -> Discrete:
    return Discrete(alphas_cumprod=tuple(epd_golden(GOLDEN)["sd_alphas_cumprod"].tolist()))


def grid_of(case: dict[str, Any]) -> Grid:
    kind, steps = case["schedule_type"], case["N"] - 1
    if kind == "discrete":
        schedule = {"name": "discrete", "alphas_cumprod": epd_golden(GOLDEN)["sd_alphas_cumprod"].tolist()}
        return Grid(kind=kind, steps=steps, rho=case["rho"], schedule=schedule)
    return Grid(kind=kind, steps=steps, start=case["sigma_max"], end=case["sigma_min"], rho=case["rho"])


@pytest.mark.parametrize("key", CASES)
def test_a_grid_equals_the_official_schedule(key: str) -> None:
    """The official levels near the end carry the rounding of the subtraction that forms them: 1.4e-11 in the last."""
    case, official = CASES[key], epd_golden(GOLDEN)[key]
    values = grid_of(case).values(EDM())
    torch.testing.assert_close(values[:-1], official[:-1], rtol=2e-12, atol=0.0)
    torch.testing.assert_close(values[-1], official[-1], rtol=2e-11, atol=0.0)
    if case["schedule_type"] != "discrete":
        assert values[-1].item() == case["sigma_min"]


@pytest.mark.parametrize("key", CASES)
def test_the_official_float32_schedule_is_the_same_grid_rounded(key: str) -> None:
    """All but the last level: it differs by 0.7 % for `time_uniform`, which cancels in float32."""
    official, values = epd_golden("schedules_f32")[key], grid_of(CASES[key]).values(EDM())
    torch.testing.assert_close(values[:-1], official[:-1], rtol=1e-3, atol=0.0)
    torch.testing.assert_close(values[-1], official[-1], rtol=8e-3, atol=0.0)


def test_quadratic_is_time_uniform_with_rho_two() -> None:
    values = Grid(kind="quadratic", steps=10).values(EDM())
    torch.testing.assert_close(values, Grid(kind="time_uniform", rho=2.0, steps=10).values(EDM()), **EXACT)


def test_the_discrete_path_equals_the_official_tables() -> None:
    golden, path = epd_golden(GOLDEN), discrete()
    t = golden["sd_sigma_of_t_t"]
    torch.testing.assert_close(path.clock(t), golden["sd_sigma_of_t"], **EXACT)
    torch.testing.assert_close(path.from_clock(golden["sd_sigma_of_t"]), golden["sd_t_of_sigma"], **EXACT)
    torch.testing.assert_close(path.from_half_log_snr(path.half_log_snr(t)), t, **EXACT)


def test_the_discrete_path_ends_at_the_official_noise_range() -> None:
    path = discrete()
    ends = path.clock(torch.tensor([1e-3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, epd_golden(GOLDEN)["sd_sigma_min_max"], **EXACT)


def test_the_default_discrete_path_is_that_of_stable_diffusion() -> None:
    s = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(Discrete().clock(s), discrete().clock(s), rtol=1e-10, atol=0.0)
