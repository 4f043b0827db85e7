"""Grid rules from lower noise levels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from solverdistill.noise.grids import Grid, lower_start
from solverdistill.noise.paths import make_path

RANGES = {"edm": (80.0, 0.002), "vp": (1.0, 1e-3), "flow": (1.0, 0.01), "discrete": (0.999, 0.01)}


@pytest.mark.parametrize("kind", ["polynomial", "logsnr", "time_uniform", "quadratic"])
@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_lower_start_is_the_same_rule_between_a_lower_level_and_the_same_end(name: str, kind: str) -> None:
    path, (start, end) = make_path(name), RANGES[name]
    rule = Grid(kind, 5, start, end)
    lower = lower_start(rule, path, 1.5)
    assert replace(lower, start=start) == rule
    from_snr = max(float(path.half_log_snr(start)), -math.log(80.0)) + 1.5
    assert float(path.half_log_snr(lower.start)) == pytest.approx(from_snr, abs=1e-9)
    values = lower.values(path)
    assert len(values) == 6 and float(values[0]) == lower.start and float(values[-1]) == end
    assert bool((values.diff() < 0).all())


def test_shifts_add_up_below_pure_noise() -> None:
    path, rule = make_path("flow"), Grid("flow_shift", 4, 1.0, 0.01, shift=3.0)
    twice = lower_start(lower_start(rule, path, 1.0), path, -0.5)
    assert twice.start == pytest.approx(lower_start(rule, path, 0.5).start)
    assert lower_start(rule, path, 0.0).start == pytest.approx(80 / 81)  # sigma / alpha = 80 stands for pure noise


@pytest.mark.parametrize("start", [1.0, 0.8])
def test_a_shifted_grid_is_uniform_before_the_shift(start: float) -> None:
    values = Grid("flow_shift", 5, start, 0.02, shift=3.0).values(make_path("flow"))
    assert float(values[0]) == start and float(values[-1]) == 0.02
    unshifted = values / (3.0 - 2.0 * values)
    torch.testing.assert_close(unshifted.diff(), unshifted.diff().mean().expand(5), rtol=1e-12, atol=0)


def test_levels_of_a_schedule_and_empty_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="a discrete grid begins where its schedule does"):
        lower_start(Grid("discrete", 4), make_path("edm"), 1.0)
    with pytest.raises(ValueError, match="a grid goes down from start to end"):
        lower_start(Grid("polynomial", 4, 80.0, 10.0), make_path("edm"), 3.0)
    torch.testing.assert_close(lower_start(Grid(), make_path("edm"), 1.0).start, 80.0 / math.e)
