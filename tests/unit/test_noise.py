"""Paths: inverses, derivatives, extrapolation, straight coordinates."""

from __future__ import annotations

import pytest
import torch

from solverdistill.noise.levels import analytical_denoised, make_level
from solverdistill.noise.paths import make_path

PATHS = ["edm", "flow", {"name": "flow", "shift": 3.0}, "vp", "cosine", "discrete"]
INSIDE = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


@pytest.mark.parametrize("name", PATHS, ids=str)
def test_half_log_snr_and_clock_are_inverted(name: object) -> None:
    path = make_path(name)  # type: ignore[arg-type]
    torch.testing.assert_close(path.from_half_log_snr(path.half_log_snr(INSIDE)), INSIDE, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(path.from_clock(path.clock(INSIDE)), INSIDE, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(path.clock_of(path.level(INSIDE)), path.clock(INSIDE), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PATHS, ids=str)
def test_derivatives_are_those_of_the_path(name: object) -> None:
    path = make_path(name)  # type: ignore[arg-type]
    s = INSIDE + 1.3e-4  # between the knots of the discrete path
    h = 1e-6
    for which in ("alpha", "sigma"):
        numeric = (getattr(path, which)(s + h) - getattr(path, which)(s - h)) / (2 * h)
        torch.testing.assert_close(getattr(path.derivatives(s), which), numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PATHS, ids=str)
def test_straight_coordinates_have_the_paths_signal_to_noise_ratio(name: object) -> None:
    path = make_path(name)  # type: ignore[arg-type]
    straight, own = path.straight(path.clock(INSIDE)), path.level(INSIDE)
    scale = path.scale(INSIDE)
    torch.testing.assert_close(straight.alpha * scale, own.alpha, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(straight.sigma * scale, own.sigma, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_pure_noise_is_exact(name: str) -> None:
    level = make_path(name).level(1.0)
    assert float(level.alpha) == 0.0 and float(level.sigma) == 1.0


@pytest.mark.parametrize("name", ["edm", "flow", "vp", "discrete"])
def test_paths_extend_past_their_ends(name: str) -> None:
    path = make_path(name)
    beyond = torch.tensor([1.0, 1.02, 1.05], dtype=torch.float64)
    level = path.level(beyond)
    assert bool(torch.isfinite(level.alpha).all()) and bool((level.sigma.diff() >= 0).all())


def test_analytical_denoised_is_the_slope_of_unit_data() -> None:
    x = torch.randn(3, dtype=torch.float64)
    denoised = analytical_denoised(x, make_level(1.0, 80.0))
    torch.testing.assert_close((x - denoised) / 80.0, x / (1 + 80.0**2) ** 0.5)
    assert bool((analytical_denoised(x, make_level(0.0, 1.0)) == 0).all())


def test_unknown_paths_and_options_are_named() -> None:
    with pytest.raises(ValueError, match="path 'warp' is unknown; known: edm"):
        make_path("warp")
    with pytest.raises(ValueError, match="'vp' was given options it does not take"):
        make_path({"name": "vp", "shift": 3.0})
