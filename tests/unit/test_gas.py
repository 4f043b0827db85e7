"""The generalised solver: what it starts as, what its params do, and what the network hears."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.base import Params
from solverdistill.families.learned.gas import GAS
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import make_path
from solverdistill.programs.playing import sample
from solverdistill.teachers.mixture import toy_mixture

GRIDS = {
    "edm": Grid("polynomial"),
    "flow": Grid("flow_shift", start=1.0, end=0.0, shift=3.0),
    "vp": Grid("logsnr", start=1.0, end=1e-3),
    "discrete": Grid("time_uniform", start=1.0, end=1e-3),
    "cosine": Grid("time_uniform", start=1.0, end=0.01),
}
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
everywhere = pytest.mark.parametrize("path", GRIDS)


def make(path: str, steps: int = 5, **options: Any) -> GAS:
    family = build("gas", GRIDS[path].with_steps(steps), path, **options)
    assert isinstance(family, GAS)
    return family


def perturbed(family: GAS, size: float = 0.05, seed: int = 0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + size * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in family.init(0).items()
    }


@everywhere
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("order", [None, 1, 2, 3])
@pytest.mark.parametrize("lower", [True, False])
def test_it_starts_as_dpmpp_on_the_same_grid(path: str, steps: int, order: int | None, lower: bool) -> None:
    family = make(path, steps, order=order, init_from="lower_order_final" if lower else "dpmpp")
    base = build("dpmpp", family.grid, path, order=min(order or 3, steps, 3), lower_order_final=lower)
    ours, theirs = family.program(family.init(0)), base.program()
    for name in ("alpha", "sigma", "A", "B"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **CLOSE)


@everywhere
def test_the_published_start_has_uniform_times_and_no_corrections(path: str) -> None:
    family = make(path, init_from="paper")
    params = family.init(0)
    times = family._to_time(family.prepare(params).timeline.s)
    torch.testing.assert_close(times.diff(), (times[-1] - times[0]).expand(5) / 5, **CLOSE)
    assert all(not value.any() for name, value in params.items() if name != "mu_logit")


def test_lower_order_final_steps_are_a_better_start_than_the_published_one() -> None:
    """Third-order extrapolation over the last, huge step is what the published start suffers from."""
    z, denoiser = torch.randn(64, 6, dtype=torch.float64), toy_mixture()
    grid = Grid("time_uniform", 4, 1.0, 1e-3)
    fine = build("unipc", Grid("logsnr", 100, 1.0, 1e-3), "vp", order=3)
    exact = sample(fine.program(), denoiser, z)
    errors = {}
    for start in ("paper", "lower_order_final"):
        family = build("gas", grid, "vp", init_from=start)
        errors[start] = (sample(family.program(family.init(0)), denoiser, z) - exact).square().mean().sqrt().item()
    assert errors["lower_order_final"] < errors["paper"] / 3


@everywhere
def test_times_fall_between_fixed_ends_whatever_the_params(path: str) -> None:
    family = make(path, 10)
    for seed in range(20):
        params = family.init(0)
        params["mu_logit"] = 3 * torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        s = family.prepare(params).timeline.s
        assert (s.diff() < 0).all()
        assert (s[0].item(), s[-1].item()) == (family.grid[0], family.grid[-1])


def never_act(family: GAS) -> dict[str, Tensor]:
    """Entries [n] of c{i}, a{i} with i > n + 1: the history that they would weigh does not exist.

    In the ablation without the analytical part, also c of a last step that ends at sigma = 0, where it has a factor 0.
    """
    steps = torch.arange(family.steps)
    idle = {f"{letter}{i + 1}_diff": i > steps for i in range(family.memory) for letter in "ca"}
    if not family.use_theory_coef and family.grid[-1] == 0:
        for i in range(family.memory):
            idle[f"c{i + 1}_diff"] |= steps == family.steps - 1
    return idle


@everywhere
@pytest.mark.parametrize("use_theory_coef", [True, False])
def test_gradients_equal_finite_differences_and_all_acting_params_have_one(path: str, use_theory_coef: bool) -> None:
    family, denoiser = make(path, 4, use_theory_coef=use_theory_coef), toy_mixture()
    z = torch.randn(6, 6, dtype=torch.float64)
    params = {name: value.requires_grad_() for name, value in perturbed(family, 0.02).items()}
    weights = torch.randn(6, 6, dtype=torch.float64)

    def loss(values: Params) -> Tensor:
        return (sample(family.program(values), denoiser, z) * weights).sum()

    gradients = dict(zip(params, torch.autograd.grad(loss(params), list(params.values())), strict=True))
    idle = never_act(family)
    for name, gradient in gradients.items():
        dead = idle.get(name, torch.zeros_like(gradient, dtype=torch.bool))
        assert not gradient[dead].any(), name
        assert gradient.isfinite().all() and (gradient[~dead] != 0).all(), name
        for k in range(len(gradient)):
            step = torch.zeros_like(gradient)
            step[k] = 1e-6
            with torch.no_grad():
                up, down = (loss({**params, name: params[name] + sign * step}) for sign in (1, -1))
            assert gradient[k].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-4, abs=1e-5), (name, k)


@pytest.mark.parametrize("path", ["edm", "vp", "discrete"])
def test_the_network_hears_the_shifted_time_and_sees_the_unshifted_state(path: str) -> None:
    family, told_path = make(path, 4), make_path(path)
    params = perturbed(family, 0.01)
    heard: list[tuple[Tensor, float, float]] = []

    def scripted(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        heard.append((x, alpha[0].item(), sigma[0].item()))
        return torch.zeros_like(x)

    z = torch.randn(2, 3, dtype=torch.float64)
    states = torch.cat([(z * family.initial_scale(None))[None], torch.stack(list(family.solve(scripted, z, params)))])
    s = family.prepare(params).timeline.s
    told = told_path.level(family._from_time(family._to_time(s)[:-1] + params["t_couple"]))
    for n, (x, alpha, sigma) in enumerate(heard):
        scale = torch.hypot(told.alpha[n], told.sigma[n])
        assert (alpha, sigma) == pytest.approx(((told.alpha[n] / scale).item(), (told.sigma[n] / scale).item()))
        torch.testing.assert_close(x * scale, states[n], **CLOSE)
    own = [told_path.half_log_snr(s[n]).item() for n in range(4)]
    shifts = [abs(torch.log(torch.tensor(a / b)).item() - lam) for (_, a, b), lam in zip(heard, own, strict=True)]
    assert min(shifts) > 1e-4


@pytest.mark.parametrize("path", ["edm", "flow"])
def test_a_shifted_time_changes_the_conversion_by_the_networks_own_output(path: str) -> None:
    """Of a step with one output: eps on edm and the velocity on flow are read at the solver's own level."""
    family, denoiser = make(path, 1), toy_mixture()
    params = {**family.init(0), "t_couple": torch.tensor([-0.1], dtype=torch.float64)}
    x = torch.randn(4, 6, dtype=torch.float64) * family.initial_scale(None)
    timeline = family.prepare(params).timeline
    told, sigma, sigma_next = timeline.told(0), timeline.sigma[0], timeline.sigma[1]
    denoised = denoiser(x, told.alpha.expand(4), told.sigma.expand(4))
    slope = (x - denoised) / told.sigma
    expected = x + (sigma_next - sigma) * slope
    new, _ = family.solve_step(0, x, (), denoiser, params)
    torch.testing.assert_close(new, expected, **CLOSE)


def test_param_counts_are_the_published_ones() -> None:
    counts = [sum(value.numel() for value in make("vp", steps).init(0).values()) for steps in (4, 6, 10)]
    assert counts == [39, 83, 219]
    acting = [
        count - sum(int(dead.sum()) for dead in never_act(make("vp", steps)).values())
        for count, steps in zip(counts, (4, 6, 10), strict=True)
    ]
    assert acting == [27, 53, 129]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"order": 0}, "order of gas must be at least 1"), ({"init_from": "best"}, "known: lower_order_final")],
)
def test_a_wrong_hyperparameter_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("edm", **options)


def test_levels_too_close_for_the_times_are_refused() -> None:
    with pytest.raises(ValueError, match="too close in time"):
        build("gas", [1.0, 0.5, 0.5 - 1e-7, 0.1], "vp").init(0)


def test_a_told_time_below_zero_is_refused() -> None:
    family = make("vp")
    with pytest.raises(ValueError, match="times are above 0"):
        family.program({**family.init(0), "t_couple": torch.full((5,), -1.5, dtype=torch.float64)})
