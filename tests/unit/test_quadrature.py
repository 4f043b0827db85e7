"""The Gauss rules that EPD starts from."""

from __future__ import annotations

import math

import pytest
import torch

from solverdistill import families
from solverdistill.families.learned.epd import EPD
from solverdistill.families.learned.quadrature import exponential_gauss
from solverdistill.noise.grids import Grid

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


@pytest.mark.parametrize("points", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1e-6, 0.3, 1.0, 3.5, 10.6, 15.0])
def test_a_rule_is_exact_for_polynomials_and_the_exponential(points: int, length: float) -> None:
    nodes, weights = exponential_gauss(points, length)
    assert bool((nodes > 0).all() and (nodes < 1).all() and (nodes.diff() > 0).all() and (weights > 0).all())
    for degree in range(2 * points - 1):
        assert float((weights * nodes**degree).sum()) == pytest.approx(1 / (degree + 1), rel=1e-9)
    mean = float((weights * torch.exp(-length * nodes)).sum())
    assert mean == pytest.approx(-math.expm1(-length) / length, rel=1e-7)


def test_a_short_step_has_the_rule_of_gauss_and_legendre() -> None:
    nodes, weights = exponential_gauss(2, 1e-9)
    expected = torch.tensor([0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5], dtype=torch.float64)
    torch.testing.assert_close(nodes, expected, **CLOSE)
    torch.testing.assert_close(weights, torch.full((2,), 0.5, dtype=torch.float64), **CLOSE)


def test_a_rule_that_cannot_be_found_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule of 4 points was found for a step of length 200 in log u; take fewer"):
        exponential_gauss(4, 200.0)


@pytest.mark.parametrize("points", [1, 2, 3])
def test_epd_starts_at_weights_that_integrate_the_slope_of_an_exact_trajectory(points: int) -> None:
    """Mean slope of a step where the denoised image is log(tau / u)^m, from dy/du = (y - D) / u, against the rule's."""
    solver = families.build("epd", Grid("polynomial", steps=3), points=points, init_from="quadrature")
    assert isinstance(solver, EPD)
    values = solver.prepare(solver.init(0))
    assert bool((values.scale_dir == 1).all() and (values.scale_time == 1).all())
    clock = solver.timeline.clock
    for i in range(solver.steps):
        u, u_next = float(clock[i]), float(clock[i + 1])
        tau = u_next ** values.r[i] * u ** (1 - values.r[i])
        for degree in range(2 * points):
            mean = (_state(u_next, u, degree) - _state(u, u, degree)) / (u_next - u)
            slopes = torch.stack([(_state(float(t), u, degree) - torch.log(t / u) ** degree) / t for t in tau])
            torch.testing.assert_close((values.weight[i] * slopes).sum(), mean, rtol=1e-6, atol=1e-9)


def _state(tau: float, u: float, degree: int) -> torch.Tensor:
    """y(tau) of the trajectory that is 1 at u, where D = log(tau / u)^degree: y / tau = 1 / u + integral of D / v^2."""
    edges = torch.linspace(math.log(tau / u), 0.0, 20_001, dtype=torch.float64)
    integrand = edges**degree * torch.exp(-edges)
    simpson = (integrand[:-1:2] + 4 * integrand[1::2] + integrand[2::2]).sum() * (edges[1] - edges[0]) / 3
    return tau / u + tau / u * simpson


@pytest.mark.parametrize(("name", "path"), [("epd", "edm"), ("epd", "flow"), ("epd_ipndm", "vp")])
def test_learned_times_move_the_inner_levels_alone(name: str, path: str) -> None:
    grid = {"edm": Grid("polynomial", 4), "vp": Grid("time_uniform", 4, start=1.0, end=1e-3, rho=1.0)}
    rule = grid.get(path, Grid("flow_shift", 4, start=0.99, end=0.01))
    fixed = families.build(name, rule, path, init_from="quadrature")
    free = families.build(name, rule, path, init_from="quadrature", learn_times=True)
    assert free.learns_levels and not fixed.learns_levels and (free.nfe, free.depth) == (fixed.nfe, fixed.depth)
    ours, theirs = free.program(free.init(0)), fixed.program(fixed.init(0))
    torch.testing.assert_close(ours.B, theirs.B, **CLOSE)
    params = free.init(0)
    params["raw_dt"] += torch.tensor([0.5, 0.0, -0.5, 0.2], dtype=torch.float64)
    moved = [float(level.sigma / level.alpha) for level in free.prepared_levels(params)]
    before = [float(level.sigma / level.alpha) for level in fixed.prepared_levels(fixed.init(0))]
    assert moved[0] == before[0] and moved[-1] == before[-1]
    assert all(a > b for a, b in zip(moved, moved[1:], strict=False))
    assert all(abs(a - b) > 1e-3 for a, b in zip(moved[1:-1], before[1:-1], strict=True))
    table = families.build(name, [float(value) for value in _grid_of(free, params)], path, init_from="quadrature")
    expected = table.program({key: value for key, value in params.items() if key != "raw_dt"})
    torch.testing.assert_close(free.program(params).B, expected.B, **CLOSE)


def _grid_of(family: families.Family, params: dict[str, torch.Tensor]) -> torch.Tensor:
    return family.prepare(params).timeline.s


def test_what_epd_cannot_start_from_is_refused() -> None:
    with pytest.raises(ValueError, match="init_from of epd is 'random'; known: drawn, quadrature"):
        families.build("epd", Grid("polynomial", 3), init_from="random")
