"""Damped Gauss-Newton: exact and sketched normal equations, steps that lower the error, what a fit refuses."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.denoisers.wrappers import Counted
from solverdistill.families import build
from solverdistill.families.base import Family, Params
from solverdistill.fits.batches import take
from solverdistill.fits.gauss_newton.derivatives import MODES, Differentiator, coefficient_tangents
from solverdistill.fits.gauss_newton.fit import GaussNewtonFit, fit_gauss_newton
from solverdistill.fits.gauss_newton.normal_equations import Equations, NormalEquations, damped_step, moved
from solverdistill.fits.gauss_newton.sketches import RollOut, random_signs
from solverdistill.fits.report import BACKWARD_COST, TANGENT_COST
from solverdistill.noise.grids import Grid
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.references.seeding import seeded_noise
from solverdistill.teachers.digits import edm_digits
from solverdistill.teachers.mixture import toy_mixture

FAMILIES: list[tuple[str, int, dict[str, Any]]] = [
    ("corrected", 4, {"base": "unipc", "order": 3}),
    ("corrected", 2, {"base": "epd"}),
    ("gas", 4, {}),
    ("epd", 2, {}),
]
every_family = pytest.mark.parametrize(
    ("name", "steps", "options"), FAMILIES, ids=["corrected", "corrected-epd", "gas", "epd"]
)


def solved(denoiser: Any, noise: Tensor, cond: Tensor | None = None) -> Batch:
    """Noise with the end points of a fine solve."""
    with torch.no_grad():
        *_, end = build("heun", Grid("polynomial", 30)).solve(denoiser, noise, cond=cond)
    return Batch(noise, noise[None][:0], end, cond)


def of_mixture(count: int) -> Batch:
    return solved(toy_mixture(), torch.randn(count, 6, dtype=torch.float64))


def perturbed(family: Family) -> Params:
    return {name: value + 0.05 * torch.randn_like(value) for name, value in family.init(0).items()}


def reverse_jacobian(family: Family, params: Params, batch: Batch) -> Tensor:
    """Derivative of the samples in all params by back-propagation. Shape: (params, batch, ...)."""
    flat = torch.cat([value.flatten() for value in params.values()])
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    result = torch.autograd.functional.jacobian(
        lambda row: sample(family.program(moved(zeros, row)), toy_mixture(), batch.noise), flat
    )
    assert isinstance(result, Tensor)
    return result.movedim(-1, 0)


def error_of(family: Family, params: Params, denoiser: Any, batch: Batch) -> float:
    program = family.program(params).detach()
    return float(rmse(sample(program, denoiser, batch.noise, batch.cond), batch.end).mean())


@every_family
@pytest.mark.parametrize("mode", MODES)
def test_the_jacobian_is_that_of_back_propagation(name: str, steps: int, options: dict[str, Any], mode: str) -> None:
    family, batch = build(name, Grid("polynomial", steps), **options), of_mixture(3)
    params = perturbed(family)
    differentiate = Differentiator(toy_mixture(), directions=5, mode=mode)
    ours = differentiate(*coefficient_tangents(family, params), batch)
    assert differentiate.mode == mode
    close = 1e-6 if mode == "differences" else 1e-8
    torch.testing.assert_close(ours, reverse_jacobian(family, params, batch), rtol=close, atol=close)


@every_family
def test_single_samples_are_differentiated_as_by_back_propagation(
    name: str, steps: int, options: dict[str, Any]
) -> None:
    family, batch = build(name, Grid("polynomial", steps), **options), of_mixture(3)
    params, vectors = perturbed(family), torch.randn(2, 3, 6, dtype=torch.float64)
    program, tangents = coefficient_tangents(family, params)
    roll_out = RollOut(program, toy_mixture(), batch)
    torch.testing.assert_close(roll_out.end, sample(program, toy_mixture(), batch.noise))
    jacobian = reverse_jacobian(family, params, batch)
    for k, vector in enumerate(vectors):
        expected = torch.einsum("pnd,nd->np", jacobian, vector)
        ours = roll_out.differentiate(vector, tangents, last=k == 1)
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


def equations_of(
    family: Family, params: Params, batch: Batch, size: int, jacobian: str, signs: Tensor, power: float = 1.0
) -> Any:
    make = Equations(toy_mixture(), size, jacobian, len(signs), power)
    return make(family, params, batch, signs, 1e-9, batch.noise.shape[0])


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("jacobian", ["sketch", "exact"])
def test_the_gradient_is_that_of_the_mean_error_however_samples_are_batched(jacobian: str, power: float) -> None:
    family, batch = build("corrected", Grid("polynomial", 3), base="dpmpp"), of_mixture(7)
    params = {name: value.requires_grad_() for name, value in perturbed(family).items()}
    error = rmse(sample(family.program(params), toy_mixture(), batch.noise), batch.end)
    (error**power / power).mean().backward()
    expected = torch.cat([value.grad.flatten() for value in params.values() if value.grad is not None])
    signs = random_signs((1, 7, 6), torch.Generator().manual_seed(0))
    whole, parts = (equations_of(family, params, batch, size, jacobian, signs, power) for size in (7, 3))
    torch.testing.assert_close(whole.g, expected, rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_sketch_is_the_exact_curvature_on_average() -> None:
    """Projections on all 2^6 vectors of signs have exactly the identity as their mean outer product."""
    family, batch = build("corrected", Grid("polynomial", 3), base="dpmpp"), of_mixture(4)
    params = perturbed(family)
    signs = torch.tensor([[1 - 2 * (k >> bit & 1) for bit in range(6)] for k in range(64)], dtype=torch.int8)
    sketched = equations_of(family, params, batch, 4, "sketch", signs[:, None].expand(64, 4, 6))
    exact = equations_of(family, params, batch, 4, "exact", signs[:1, None].expand(1, 4, 6))
    torch.testing.assert_close(sketched.H, exact.H, rtol=1e-8, atol=1e-10)


def test_a_step_solves_the_damped_equations_and_leaves_idle_params() -> None:
    J = torch.randn(9, 4, dtype=torch.float64) * torch.tensor([1.0, 1e2, 1e-2, 0.0], dtype=torch.float64)
    equations = NormalEquations(J.T @ J, torch.randn(4, dtype=torch.float64) * J.norm(dim=0))
    step = damped_step(equations, 0.3)
    damped = equations.H + 0.3 * equations.H.diagonal().diag()
    torch.testing.assert_close(damped @ step, -equations.g, rtol=1e-8, atol=1e-10)
    assert step[3] == 0


@pytest.mark.parametrize("jacobian", ["sketch", "exact"])
@every_family
def test_a_few_iterations_lower_the_held_out_error(
    name: str, steps: int, options: dict[str, Any], jacobian: str
) -> None:
    family, denoiser = build(name, Grid("polynomial", steps), **options), toy_mixture()
    train, held_out = of_mixture(48), of_mixture(32)
    settings = GaussNewtonFit(iterations=4, jacobian=jacobian)
    params, report = fit_gauss_newton(family, denoiser, train, held_out, settings)
    errors = [point.rmse for point in report.history]
    assert errors[0] == pytest.approx(error_of(family, family.init(0), denoiser, held_out))
    assert errors == sorted(errors, reverse=True) and report.rmse < 0.8 * errors[0]
    assert error_of(family, params, denoiser, held_out) == pytest.approx(report.rmse)
    assert error_of(family, params, denoiser, of_mixture(64)) < errors[0]
    again, same = fit_gauss_newton(family, denoiser, train, held_out, settings)
    assert all(torch.equal(params[key], again[key]) for key in params)
    assert [point.rmse for point in same.history] == errors and same.evaluations == report.evaluations


@pytest.mark.slow
def test_a_network_in_single_precision_is_fitted_in_forward_mode() -> None:
    teacher = edm_digits()
    train, held_out = (solved(teacher, *seeded_noise(range(start, start + 24), teacher)) for start in (0, 1000))
    family = build("corrected", Grid("polynomial", 3), base="unipc")
    settings = GaussNewtonFit(iterations=2, batch_size=12, directions=24, jacobian="exact")
    _, report = fit_gauss_newton(family, teacher, train, held_out, settings)
    assert report.note == "derivatives: vmap" and report.rmse < 0.8 * report.history[0].rmse


def test_evaluations_are_counted() -> None:
    family, batch = build("corrected", Grid("polynomial", 3), base="dpmpp"), of_mixture(8)
    settings = GaussNewtonFit(iterations=1, tries=1, damping=10.0, directions=100, jacobian="exact")
    counted = Counted(toy_mixture())
    _, report = fit_gauss_newton(family, counted, batch, batch, settings)
    active = family.nfe * 2 + 2 * 3 + 1 + int(family.init(0)["raw_dt"].numel())  # told, rows, times
    jacobian = round((1 + TANGENT_COST * active) * 8 * 3)
    assert counted.images == 4 * 8 * 3  # start, residuals, once through the derivative, one trial
    assert {kind: cost.evaluations for kind, cost in report.spent.items()} == {
        "teacher": 0,
        "forward": 3 * 8 * 3,
        "backward": jacobian,
    }
    counted = Counted(toy_mixture())
    _, report = fit_gauss_newton(family, counted, batch, batch, replace(settings, jacobian="sketch", sketches=2))
    assert counted.images == report.spent["forward"].evaluations == 3 * 8 * 3  # start, one roll-out, one trial
    assert report.spent["backward"].evaluations == 3 * BACKWARD_COST * 8 * 3  # the gradient and two projections
    assert report.evaluations == sum(cost.evaluations for cost in report.spent.values())
    known, (start, *_) = replace(settings, jacobian="sketch"), report.history
    counted = Counted(toy_mixture())
    _, told = fit_gauss_newton(family, counted, batch, batch, known, error=start.rmse)
    assert counted.images == 2 * 8 * 3
    assert told.history[0][:2] == (start.rmse, 0) and not any(cost.evaluations for cost in told.history[0].spent)


def test_a_budget_and_checkpointing() -> None:
    family, batch = build("corrected", Grid("polynomial", 3), base="dpmpp"), of_mixture(32)
    settings = GaussNewtonFit(iterations=10, tries=1)
    params, report = fit_gauss_newton(family, toy_mixture(), batch, batch, settings)
    recomputed, _ = fit_gauss_newton(family, toy_mixture(), batch, batch, replace(settings, checkpointing=True))
    assert all(torch.equal(params[name], recomputed[name]) for name in params)
    third = report.history[3].evaluations
    _, stopped = fit_gauss_newton(family, toy_mixture(), batch, batch, replace(settings, evaluations=third))
    assert [point.rmse for point in stopped.history] == [point.rmse for point in report.history[:4]]
    assert stopped.stopped == "budget spent" and len(report.history) > 4


class Fused(torch.autograd.Function):
    """Identity without a forward derivative, as fused kernels are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


def test_a_network_without_forward_derivative_is_differenced_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fused(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return Fused.apply(toy_mixture()(x, alpha, sigma))  # pyright: ignore[reportReturnType]

    family, batch = build("corrected", Grid("polynomial", 3), base="dpmpp"), of_mixture(16)
    settings = GaussNewtonFit(iterations=2, batch_size=8, jacobian="exact")
    with caplog.at_level(logging.WARNING):
        _, report = fit_gauss_newton(family, fused, batch, batch, settings)
    assert report.note == "derivatives: differences" and report.rmse < report.history[0].rmse
    assert len(caplog.records) == 2 and "taking differences" in caplog.text


def test_attention_is_differentiated_with_the_math_kernel() -> None:
    def attentive(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        tokens = (x * alpha[:, None] / sigma[:, None])[:, None, :, None]
        return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).view_as(x)

    family = build("corrected", Grid("polynomial", 2), base="euler")
    noise = torch.randn(2, 6)
    tangents = coefficient_tangents(family, family.init(0))
    forward, differences = (Differentiator(attentive, mode=mode) for mode in ("vmap", "differences"))
    batch = Batch(noise, noise[None][:0], noise)
    ours = forward(*tangents, batch)
    assert forward.mode == "vmap"
    torch.testing.assert_close(ours, differences(*tangents, batch), rtol=2e-2, atol=2e-2)


def test_a_step_that_the_family_refuses_is_undone() -> None:
    """GAS refuses told times that are not positive; its params must never get there."""
    family = build("gas", Grid(kind="flow_shift", steps=3, start=1.0, end=0.02), "flow")
    noise = torch.randn(16, 6, dtype=torch.float64)
    batch = Batch(noise, noise[None][:0], torch.randn_like(noise))
    settings = GaussNewtonFit(iterations=3, damping=1e-8, tries=2)
    params, report = fit_gauss_newton(family, toy_mixture(), batch, batch, settings)
    assert report.rmse <= report.history[0].rmse
    assert error_of(family, params, toy_mixture(), batch) == pytest.approx(report.rmse)


def test_a_fit_at_its_minimum_stops_and_returns_where_it_was() -> None:
    family, denoiser = build("corrected", Grid("polynomial", 3), base="dpmpp"), toy_mixture()
    noise = torch.randn(8, 6, dtype=torch.float64)
    batch = Batch(noise, noise[None][:0], sample(family.program(family.init(0)), denoiser, noise) + 1e-9)
    start = family.init(0)
    held_out = replace_end(batch, batch.end - 1e-9)
    settings = GaussNewtonFit(jacobian="exact")
    params, report = fit_gauss_newton(family, denoiser, batch, held_out, settings, start)
    assert report.rmse == 0 and all(torch.equal(params[name], start[name]) for name in start)
    assert report.stopped == "no step lowers the held-out error" and len(report.history) == 2


def replace_end(batch: Batch, end: Tensor) -> Batch:
    return batch._replace(end=end)


def test_samples_are_drawn_anew_and_a_start_is_taken() -> None:
    family, train, held_out = build("corrected", Grid("polynomial", 3), base="dpmpp"), of_mixture(64), of_mixture(32)
    settings = GaussNewtonFit(iterations=3, samples=16)
    first, report = fit_gauss_newton(family, toy_mixture(), train, held_out, settings)
    other, _ = fit_gauss_newton(family, toy_mixture(), train, held_out, replace(settings, seed=1))
    assert not torch.equal(first["told"], other["told"])
    _, continued = fit_gauss_newton(family, toy_mixture(), train, held_out, settings, start=first)
    assert continued.history[0].rmse == pytest.approx(report.rmse)
    assert take(train, torch.tensor([3])).noise.shape == (1, 6)


def test_what_cannot_be_fitted_is_refused() -> None:
    batch = of_mixture(2)
    with pytest.raises(ValueError, match="euler has no params that change its table"):
        fit_gauss_newton(build("euler", Grid("polynomial", 3)), toy_mixture(), batch, batch)
    with pytest.raises(ValueError, match="fit.samples must be at least 1, not 0"):
        GaussNewtonFit(samples=0)
    with pytest.raises(ValueError, match="fit.damping_factor must be above 1, not 1"):
        GaussNewtonFit(damping_factor=1.0)
    with pytest.raises(ValueError, match="fit.power must be at most 2, not 3"):
        GaussNewtonFit(power=3.0)
    with pytest.raises(ValueError, match="fit.jacobian 'full' is unknown; known: sketch, exact"):
        GaussNewtonFit(jacobian="full")
    with pytest.raises(TypeError, match="iterations of GaussNewtonFit must be an integer"):
        GaussNewtonFit(iterations="many")  # pyright: ignore[reportArgumentType]
