"""LD3: what it starts as, what its params do, and what the network hears."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.base import Params
from solverdistill.families.learned.ld3 import BASES, LD3
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import make_path
from solverdistill.programs.playing import sample
from solverdistill.teachers.mixture import toy_mixture

GRIDS = {
    "edm": Grid("polynomial", 5),
    "flow": Grid("flow_shift", 5, start=1.0, end=0.0, shift=3.0),
    "vp": Grid("logsnr", 5, start=1.0, end=1e-3),
    "discrete": Grid("quadratic", 5, start=1.0, end=1e-3),
}
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
everywhere = pytest.mark.parametrize("path", GRIDS)
NOISE_BASES = ["euler", "heun", "dpm2", "ipndm", "ipndm_v", "deis"]


def make(path: str, **options: Any) -> LD3:
    family = build("ld3", GRIDS[path], path, **options)
    assert isinstance(family, LD3)
    return family


def perturbed(family: LD3, times: float = 0.3, offsets: float = 1e-3) -> Params:
    generator = torch.Generator().manual_seed(0)
    shape = family.steps + 1
    noise = torch.randn(2, shape, generator=generator, dtype=torch.float64)
    start = family.init(0)
    return {"params1": start["params1"] + times * noise[0], "params2": offsets * noise[1]}


@everywhere
@pytest.mark.parametrize("base", BASES)
def test_it_starts_as_its_base_on_the_same_grid(path: str, base: str) -> None:
    family, solver = make(path, base=base), build(base, GRIDS[path], path)
    ours, theirs = family.program(family.init(0)), solver.program()
    for name in ("alpha", "sigma", "A", "B"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **CLOSE)


@everywhere
def test_the_published_start_is_uniform_in_the_coordinate(path: str) -> None:
    family = make(path, init_from="paper")
    assert torch.equal(family.init(0)["params1"], torch.ones(6, dtype=torch.float64))
    steps = family._to_coordinate(family.prepare(family.init(0)).s).diff()
    torch.testing.assert_close(steps, steps.mean().expand(5), **CLOSE)


@everywhere
def test_times_fall_between_fixed_ends_whatever_the_params(path: str) -> None:
    family = make(path)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        raw = 4 * torch.randn(2, 6, generator=generator, dtype=torch.float64)
        timeline = family.prepare({"params1": raw[0], "params2": raw[1]})
        assert (timeline.s.diff() < 0).all()
        assert (timeline.s[0].item(), timeline.s[-1].item()) == (family.grid[0], family.grid[-1])


@everywhere
@pytest.mark.parametrize("base", ["dpmpp", "unipc", "ipndm", "euler", "heun"])
def test_gradients_equal_finite_differences_and_all_acting_params_have_one(path: str, base: str) -> None:
    """The first entry of params1 cancels, and the ends of params2 never act; the window itself passes no gradient."""
    family, denoiser = make(path, base=base), toy_mixture()
    z, weights = torch.randn(2, 6, 6, dtype=torch.float64)
    params = {name: value.requires_grad_() for name, value in perturbed(family, offsets=1e-4).items()}

    def loss(values: Params) -> Tensor:
        return (sample(family.program(values), denoiser, z) * weights).sum()

    gradients = dict(zip(params, torch.autograd.grad(loss(params), list(params.values())), strict=True))
    idle = {"params1": [0], "params2": [0, family.steps]}
    for name, gradient in gradients.items():
        for k in range(len(gradient)):
            step = torch.zeros_like(gradient)
            step[k] = 1e-6
            with torch.no_grad():
                up, down = (loss({**params, name: params[name] + sign * step}) for sign in (1, -1))
            assert gradient[k].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-4, abs=1e-5), (name, k)
            assert (abs(gradient[k].item()) > 1e-9) == (k not in idle[name]), (name, k)


@everywhere
@pytest.mark.parametrize("base", ["dpmpp", *NOISE_BASES])
def test_the_network_hears_the_shifted_time_and_sees_the_unshifted_state(path: str, base: str) -> None:
    family, on_path = make(path, base=base), make_path(path)
    params = perturbed(family, offsets=5e-3)
    heard: list[tuple[Tensor, float, float]] = []

    def scripted(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        heard.append((x, alpha[0].item(), sigma[0].item()))
        return torch.zeros_like(x)

    z = torch.randn(2, 3, dtype=torch.float64)
    timeline = family.prepare(params)
    calls = []
    x: Tensor = z * family.initial_scale(timeline)
    history: tuple[Tensor, ...] = ()
    for i in range(family.steps):
        heard.clear()
        state = x
        x, history = family.solve_step(i, state, history, scripted, params)
        calls.append((state, *heard[0]))
    for i, (state, seen, alpha, sigma) in enumerate(calls):
        told = timeline.told(i)
        scale = told.hypot()
        assert (alpha, sigma) == pytest.approx(((told.alpha / scale).item(), (told.sigma / scale).item()))
        torch.testing.assert_close(seen * scale, state, **CLOSE)
    inner = torch.tensor([sigma / (alpha + sigma) for _, _, alpha, sigma in calls[1:]]).double()
    own = torch.stack([timeline.sigma[i] / (timeline.alpha[i] + timeline.sigma[i]) for i in range(1, 5)])
    assert (inner - own).abs().min() > 1e-6
    assert on_path.name == family.path.name


@pytest.mark.parametrize("base", NOISE_BASES[:1])
def test_readouts_carry_the_learned_levels(base: str) -> None:
    """States after a step are in the path's scale of the learned time, not of the grid."""
    family = make("vp", base=base)
    program = family.program(perturbed(family, offsets=0.0))
    torch.testing.assert_close(program.readouts.alpha[:-1], program.evaluations.alpha[1:], **CLOSE)
    torch.testing.assert_close(program.readouts.A[:-1], program.evaluations.A[1:], **CLOSE)
    torch.testing.assert_close(program.readouts.B[:-1], program.evaluations.B[1:], **CLOSE)


def test_the_official_window_kills_gradients_beyond_it_and_the_smooth_one_does_not() -> None:
    z, denoiser = torch.randn(4, 6, dtype=torch.float64), toy_mixture()
    for window, alive in (("official", False), ("smooth", True)):
        family = make("vp", window=window)
        params = {**family.init(0), "params2": torch.full((6,), 0.05, dtype=torch.float64).requires_grad_()}
        sample(family.program(params), denoiser, z).sum().backward()
        gradient = params["params2"].grad
        assert gradient is not None
        assert bool(gradient[1:-1].any()) == alive
        gaps = family.timeline.s.diff().abs().min()
        offsets = (family._offsets(params["params2"][1:-1], params["params1"], family.timeline.s[1:-1])).detach()
        assert (offsets.abs() <= 0.5 * gaps + 1e-15).all()


def test_the_official_window_on_edm_is_closed_for_equal_times() -> None:
    """It measures gaps between the raw params, which are all equal at the published start."""
    family = make("edm", init_from="paper")
    params = {**family.init(0), "params2": torch.ones(6, dtype=torch.float64)}
    told = torch.stack([family.prepare(params).told(i).sigma for i in range(6)])
    torch.testing.assert_close(told, family.prepare(params).s, **CLOSE)
    smooth = make("edm", init_from="paper", window="smooth")
    assert (torch.stack([smooth.prepare(params).told(i).sigma for i in range(6)]) - told).abs()[1:-1].min() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "epd"}, "base of ld3 is 'epd'; known: euler"),
        ({"base": "euler", "order": 2}, "base 'euler' of ld3 has no order"),
        ({"base": "ipndm", "variant": "bh1"}, "base 'ipndm' of ld3 has no variant"),
        ({"base": "unipc", "variant": "bh3"}, "known: bh1, bh2"),
        ({"win_rate": 1.0}, "win_rate of ld3 must lie in"),
        ({"window": "hard"}, "known: official, smooth"),
        ({"init_from": "gits"}, "known: grid, paper"),
    ],
)
def test_a_wrong_hyperparameter_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("edm", **options)
