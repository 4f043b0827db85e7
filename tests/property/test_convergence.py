"""Order of convergence of every classical solver, by regression of log error on log step on an exact mixture.

A multistep method started from noise alone begins with lower orders, whose error hides the nominal one; the nominal
order is therefore measured from exact earlier values, and the start from noise is tested apart.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers import PublishedIPNDMV, denoise_in, epd_golden, golden_mixture, reference_states
from torch import Tensor

from solverdistill.families import ROSTER, build
from solverdistill.families.base import Family
from solverdistill.families.classical.adams import AdamsBashforth
from solverdistill.families.classical.exponential import ExponentialIntegrator, phi
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import make_path
from solverdistill.teachers.mixture import Mixture, mixture

STEPS = (24, 48, 96)
RULES = {
    "edm": Grid(kind="logsnr", start=2.0, end=0.1),
    "edm-uniform": Grid(kind="polynomial", rho=1.0, start=1.0, end=0.2),
    "flow": Grid(kind="logsnr", start=0.8, end=0.1),
    "flow-noise": Grid(kind="polynomial", rho=1.0, start=1.0, end=0.1),
    "vp": Grid(kind="logsnr", start=0.4, end=0.05),
}


@cache
def problem(rule: str) -> tuple[Mixture, Tensor, Tensor]:
    """Mixture, the clock of the finest grid, and the exact straight-coordinate states there."""
    path = make_path(rule.split("-")[0])
    means = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = mixture(means, [0.3, 0.3, 0.4], [0.6, 0.8, 1.0])
    grid = RULES[rule].with_steps(max(STEPS)).values(path)
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = noise * path.sigma(grid[0]) + path.alpha(grid[0]) * means[torch.arange(8) % 3]
    clock = path.clock(grid)
    return denoiser, clock, reference_states(path, denoiser, x / path.scale(grid[0]), clock, substeps=6)


def history_at(family: Family, i: int, states: Tensor, denoiser: Any) -> tuple[Tensor, ...]:
    """Exact history of a family at grid point i, newest first."""
    timeline = family.timeline

    def value(j: int) -> Tensor:
        y, u = states[j], timeline.clock[j]
        denoised = denoise_in(family.path, denoiser, y, u)
        if isinstance(family, ExponentialIntegrator):
            return family.output(j, y * timeline.scale[j], denoised, timeline)
        return (y - denoised) / u

    if isinstance(family, AdamsBashforth):
        return tuple(value(j) for j in range(i - 1, i - family.max_order, -1))
    if isinstance(family, ExponentialIntegrator):
        newest = i if family.name == "unipc" else i - 1
        return tuple(value(j) for j in range(newest, i - family.order, -1))
    return ()


def errors(name: str, rule: str, exact_start: bool, **options: Any) -> list[float]:
    """End-point error at each number of steps."""
    denoiser, _, finest = problem(rule)
    found = []
    for steps in STEPS:
        family = build(name, RULES[rule].with_steps(steps), rule.split("-")[0], **options)
        states = finest[:: max(STEPS) // steps]
        first = max(options.get("max_order", 1), options.get("order", 1)) - 1 if exact_start else 0
        x, history = states[first] * family.timeline.scale[first], ()
        if exact_start:
            history = history_at(family, first, states, denoiser)
        for i in range(first, steps):
            x, history = family.solve_step(i, x, history, denoiser)
        found.append((x / family.timeline.scale[-1] - states[-1]).norm().item())
    return found


def slope_of(found: list[float]) -> float:
    """Minus the slope of log error against log steps."""
    return -float(np.polyfit(np.log(STEPS), np.log(found), 1)[0])


ODE_RULES = ("edm", "flow-noise", "vp")
EXPONENTIAL_RULES = ("edm", "flow", "vp")
SINGLE_STEP = [("euler", {}, 1), ("heun", {}, 2), ("dpm2", {"r": 0.5}, 2), ("dpm2", {"r": 0.3}, 2)]
ADAMS = [(name, {"max_order": k}, k) for name in ("ipndm_v", "deis") for k in (2, 3, 4)]
RHOAB = [("deis", {"max_order": k, "mode": "rhoab"}, k) for k in (3, 4)]
DPMPP = [("dpmpp", {"order": p, "predict_x0": x0}, p) for p in (1, 2) for x0 in (True, False)]
UNIPC = [
    ("unipc", {"order": p, "predict_x0": x0, "variant": variant}, p + 1)
    for p in (1, 2, 3)
    for x0 in (True, False)
    for variant in ("bh1", "bh2")
]
NOMINAL = [
    *[(*case, rule) for case in SINGLE_STEP + ADAMS + RHOAB for rule in ODE_RULES],
    *[("ipndm", {"max_order": k}, k, rule) for k in (2, 3, 4) for rule in ("edm-uniform", "flow-noise")],
    *[(*case, rule) for case in DPMPP + UNIPC for rule in EXPONENTIAL_RULES],
]


@pytest.mark.parametrize(("name", "options", "order", "rule"), NOMINAL)
def test_the_order_from_exact_earlier_values_is_the_nominal_one(
    name: str, options: dict[str, Any], order: int, rule: str
) -> None:
    """UniPC's corrector adds one order to its nominal p."""
    if "order" in options:
        options = {**options, "lower_order_final": False}
    assert slope_of(errors(name, rule, exact_start=True, **options)) == pytest.approx(order, abs=0.35)


FROM_NOISE = [
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpm2", {}, 2),
    ("ipndm_v", {}, 2),
    ("deis", {}, 2),
    ("dpmpp", {}, 2),
    ("dpmpp", {"predict_x0": False}, 2),
    ("dpmpp", {"order": 3}, 2),
    ("unipc", {}, 2),
    ("unipc", {"order": 3, "predict_x0": False}, 2),
    ("dpmpp_2s", {}, 2),
    ("dpmpp_2s", {"taylor": True, "predict_x0": False}, 2),
    ("dpmpp_3s", {}, 2),
    ("dpm_3s", {"taylor": True}, 2),
    ("dpm_fast", {"order": 2}, 2),
    ("lms", {}, 2),
    ("heunpp2", {}, 1),
    ("gradient_estimation", {}, 1),
    ("res_multistep", {}, 2),
    ("res_2s", {"c_2": 0.4}, 2),
    ("res_3s", {}, 2),
    ("er_sde", {}, 2),
    ("sa_solver", {}, 2),
]


@pytest.mark.parametrize("rule", ODE_RULES)
@pytest.mark.parametrize(("name", "options", "order"), FROM_NOISE)
def test_a_solve_from_noise_converges_with_the_order_of_its_start(
    name: str, options: dict[str, Any], order: int, rule: str
) -> None:
    """Also where it starts at pure noise, alpha = 0: flow from t = 1."""
    found = errors(name, rule, exact_start=False, **options)
    assert slope_of(found) > order - 0.4
    assert found[-1] < 0.1


def test_the_published_third_order_of_dpmpp_halves_the_second_derivative() -> None:
    """Exact for outputs linear in half_log_snr, not for quadratic ones: its order in the limit is 2."""
    family = build("dpmpp", [2.0, 1.3, 0.8, 0.6], order=3)
    half_log_snr = family.timeline.half_log_snr
    shifted = (half_log_snr - half_log_snr[2]).flip(0)[1:]
    z = family.linear(2, family.timeline).z  # pyright: ignore[reportAttributeAccessIssue]
    phi_1, phi_2, phi_3 = phi(z, 3)
    h = -z
    linear = family._total(2, tuple(1 + shifted), z, family.timeline)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(linear, phi_1 + h * phi_2)
    square = family._total(2, tuple(shifted**2), z, family.timeline)  # pyright: ignore[reportAttributeAccessIssue]
    exact = 2 * h**2 * phi_3
    torch.testing.assert_close(square, exact / 2)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [("ipndm_v", {}, 1e-5), ("unipc", {"order": 3}, 5e-6), ("deis", {}, 1e-5), ("heun", {}, 5e-4)],
)
def test_many_steps_reach_the_reference_end_point(name: str, options: dict[str, Any], tolerance: float) -> None:
    golden = epd_golden("reference_ode")
    family = build(name, Grid(steps=300), **options)
    *_, x = family.solve(golden_mixture(golden), golden["z"])
    torch.testing.assert_close(x, golden["x_ref"], rtol=0.0, atol=tolerance)


def test_the_published_ipndm_v_has_not_the_order_of_its_slopes() -> None:
    """Its weights of 4 slopes mistake the third difference, so a grid whose steps become equal keeps order 3."""
    ours = slope_of(errors("ipndm_v", "edm-uniform", exact_start=True, max_order=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROSTER, "published_ipndm_v", PublishedIPNDMV)
        published = slope_of(errors("published_ipndm_v", "edm-uniform", exact_start=True, max_order=4))
    assert ours == pytest.approx(4, abs=0.35)
    assert published == pytest.approx(3, abs=0.35)
