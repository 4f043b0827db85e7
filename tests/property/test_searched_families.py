"""Families with free combinations of past outputs: DSS, BNS, S4S; where they start and what their gradients are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.base import Family, Params
from solverdistill.families.learned.bns import BNS
from solverdistill.families.learned.dss import published_params
from solverdistill.families.learned.learned_times import from_regular, learned_grid, raw_steps, to_regular
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import Level, float64
from solverdistill.noise.paths import EDM, Cosine, make_path
from solverdistill.objectives.distances import log_mse, mse, rmse
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.teachers.mixture import toy_mixture

STEPS = 4
ENDS = {"edm": (80.0, 0.002), "flow": (1.0, 0.0), "vp": (1.0, 1e-3), "cosine": (1.0, 0.0)}
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
everywhere = pytest.mark.parametrize("path", ENDS)
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("dss", {}),
    ("dss", {"short_tail": False}),
    ("bns", {}),
    ("bns", {"init_solver": "midpoint", "sigma_0": 3.0}),
    ("s4s", {}),
    ("s4s_alt", {"order": 2}),
]
every_family = pytest.mark.parametrize(("name", "options"), FAMILIES)


def uneven(path: str, steps: int = STEPS) -> Tensor:
    """A grid whose steps, in the variable that times are learned in, are not equal."""
    r = to_regular(make_path(path), torch.tensor(ENDS[path], dtype=torch.float64))
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 1.3
    s = from_regular(make_path(path), r[0] + (r[1] - r[0]) * share)
    return torch.cat([s.new_tensor(ENDS[path][:1]), s[1:-1], s.new_tensor(ENDS[path][1:])])


def even(path: str, steps: int = STEPS) -> Tensor:
    if path == "edm":
        return Grid(steps=steps).values(EDM())
    return torch.linspace(*ENDS[path], steps + 1, dtype=torch.float64)


def drawn_params(family: Family, seed: int = 5) -> Params:
    """Params away from their start; offsets are negative, as alpha is never told to be below 0."""
    generator = torch.Generator().manual_seed(seed)
    draw = {
        name: value + 0.1 * torch.rand(value.shape, generator=generator, dtype=torch.float64)
        for name, value in family.init(0).items()
    }
    return {name: 0.1 - value - 0.15 if name == "xi" else value for name, value in draw.items()}


def acting(family: Family, name: str) -> Tensor:
    """Which entries of a param have an effect."""
    value = family.init(0)[name]
    if name == "raw_coeffs":
        lower = torch.ones_like(value).tril(-1)
        if family.hyperparameters()["short_tail"] is None:
            lower[-2:] = torch.diag(torch.ones(family.steps - 1), -1)[-2:]
        return lower.bool()
    if name == "b":
        return torch.ones_like(value).tril().bool()
    if name == "phi":
        return torch.ones_like(value).tril().bool()
    return torch.ones_like(value).bool()


def assert_same(ours: SolverProgram, theirs: SolverProgram) -> None:
    for attribute in ("A", "B", "alpha", "sigma"):
        torch.testing.assert_close(getattr(ours, attribute), getattr(theirs, attribute), **CLOSE)


@everywhere
@every_family
def test_gradients_equal_finite_differences(name: str, options: dict[str, Any], path: str) -> None:
    family = build(name, uneven(path), path, **options)
    names, z, denoiser = list(family.init(0)), torch.randn(2, 6, dtype=torch.float64), toy_mixture()
    values = [value.requires_grad_() for value in drawn_params(family).values()]

    def end_point(*values: Tensor) -> Tensor:
        program = family.program(dict(zip(names, values, strict=True)))
        return sample(program, denoiser, z).square().mean()

    torch.autograd.gradcheck(end_point, values, eps=1e-6, atol=2e-6, rtol=1e-4)
    for key, gradient in zip(names, torch.autograd.grad(end_point(*values), values), strict=True):
        assert gradient.isfinite().all(), key
        assert torch.equal(gradient != 0, acting(family, key)), key


@everywhere
@every_family
def test_gradients_are_finite_at_the_start(name: str, options: dict[str, Any], path: str) -> None:
    family = build(name, even(path), path, **options)
    params = {key: value.requires_grad_() for key, value in family.init(0).items()}
    sample(family.program(params), toy_mixture(), torch.randn(2, 6, dtype=torch.float64)).square().mean().backward()
    for key, value in params.items():
        assert value.grad is not None and value.grad.isfinite().all() and bool((value.grad != 0).any()), key


@everywhere
@pytest.mark.parametrize("steps", [4, 8])
def test_dss_starts_as_ddim_on_the_uniform_grid(path: str, steps: int) -> None:
    family = build("dss", uneven(path, steps), path)
    assert_same(family.program(family.init(0)), build("dpmpp", even(path, steps), path, order=1).program())
    given = build("dss", uneven(path, steps), path, init_from="grid")
    ddim = build("dpmpp", uneven(path, steps), path, order=1)
    assert_same(given.program(given.init(0)), ddim.program())


@everywhere
@pytest.mark.parametrize(("name", "steps", "drawn"), [("dss", 5, True), ("dss", 9, True), ("s4s", 5, False)])
def test_rows_sum_to_one(name: str, steps: int, drawn: bool, path: str) -> None:
    """A constant image stays what it is: from alpha c, through denoised = c, every state is its alpha times c."""
    family = build(name, uneven(path, steps), path)
    params = drawn_params(family) if drawn else family.init(0)
    rows, values = family.program(params).readouts, family.prepare(params)
    start = family.path.level(family.grid[0]).alpha / family.initial_scale(values)
    torch.testing.assert_close(rows.A[:, 0] * start + rows.B.sum(1), rows.alpha, **CLOSE)


def test_free_weights_do_not_sum_to_one() -> None:
    for name in ("s4s", "bns"):
        family = build(name, uneven("flow"), "flow")
        rows = family.program(drawn_params(family)).readouts
        assert not torch.allclose(rows.B.sum(1), rows.alpha, atol=1e-3)


def velocity_steps(family: BNS, steps: int, midpoint: bool) -> Tensor:
    """Euler or midpoint written out on the working schedule. Returns the end in the path's own scale."""
    base = Cosine() if family.path.name == "edm" else family.path
    denoiser, z = toy_mixture(), torch.randn(3, 6, dtype=torch.float64)
    level = [family.path.level(family.grid[k]) for k in (0, -1)]
    r_0, r_n = (base.from_clock(base.clock_of(pair._replace(alpha=pair.alpha * family.sigma_0))) for pair in level)
    if family.sigma_0 == 1 and base is family.path:
        r_0, r_n = r_0.new_tensor(family.grid[0]), r_0.new_tensor(family.grid[-1])

    def slope(x: Tensor, r: Tensor) -> Tensor:
        (alpha, sigma), dot = base.level(r), base.derivatives(r)
        sigma, rate = family.sigma_0 * sigma, dot.sigma / sigma
        h = torch.hypot(alpha, sigma)
        denoised = denoiser(x / h, (alpha / h).expand(3), (sigma / h).expand(3))
        return rate * x + (dot.alpha - rate * alpha) * denoised

    size = [torch.hypot(base.alpha(r), family.sigma_0 * base.sigma(r)) for r in (r_0, r_n)]
    x, h = z * family.initial_scale(None) * size[0] / level[0].hypot(), (r_n - r_0) / steps
    for i in range(steps):
        r = r_0 + i * h
        x = x + h * (slope(x + h / 2 * slope(x, r), r + h / 2) if midpoint else slope(x, r))
    ours = sample(family.program(family.init(0)), denoiser, z)
    torch.testing.assert_close(ours, x * level[1].hypot() / size[1], **CLOSE)
    return ours


@everywhere
@pytest.mark.parametrize("sigma_0", [1.0, 5.0])
def test_bns_starts_as_euler_or_midpoint_of_its_velocity(sigma_0: float, path: str) -> None:
    euler = build("bns", uneven(path, 6), path, sigma_0=sigma_0)
    midpoint = build("bns", uneven(path, 6), path, sigma_0=sigma_0, init_solver="midpoint")
    assert isinstance(euler, BNS) and isinstance(midpoint, BNS)
    assert velocity_steps(euler, 6, midpoint=False).isfinite().all()
    assert velocity_steps(midpoint, 3, midpoint=True).isfinite().all()


def params_of(family: BNS, program: SolverProgram) -> Params:
    """Params with which BNS is another solver, written as a table of one evaluation per step.

    With D_j = (u_j - p_j x_j) / q_j, rows x = A x_0 + B D become (I + B diag(p / q)) x = A x_0 + B diag(1 / q) u.
    """
    start, end = family._find(float64([family.grid[0], family.grid[-1]]))
    r = family.schedule.find(Level(program.alpha, program.sigma))
    p, q = family.schedule.velocity(r, end - start)
    size = family.schedule.level(r).hypot()
    clean = family.path.level(family.grid[-1]).hypot() / family.schedule.level(end).hypot()
    rows = torch.cat([program.evaluations.B * size[:, None], program.readouts.B[-1:] / clean])
    inputs = torch.cat([program.evaluations.A[:, 0] * size, program.readouts.A[-1] / clean])
    inputs = inputs / inputs[0]
    system = torch.eye(family.steps + 1, dtype=torch.float64)
    system[:, :-1] += rows * (p / q)
    solved = torch.linalg.solve_triangular(system, torch.cat([inputs[:, None], rows / q], dim=1), upper=False)[1:]
    times = torch.cat([start[None], r[1:], end[None]])
    return {"raw_dt": raw_steps(times), "a": solved[:, 0], "b": solved[:, 1:]}


def test_bns_starts_as_the_euler_family_on_flow() -> None:
    for shift in (1.0, 3.0):
        path = {"name": "flow", "shift": shift}
        family = build("bns", uneven("flow"), path, init_from="grid")
        program = build("euler", uneven("flow"), path).program()
        if shift == 1.0:
            assert_same(family.program(family.init(0)), program)
        assert isinstance(family, BNS)
        assert_same(family.program(params_of(family, program)), program)


@pytest.mark.parametrize("sigma_0", [1.0, 5.0])
@everywhere
@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2", "dpmpp", "unipc", "ipndm"])
def test_bns_subsumes_the_classical_solvers(solver: str, path: str, sigma_0: float) -> None:
    grid = uneven(path)
    if solver not in ("dpmpp", "unipc") and path == "cosine":
        grid = torch.cat([grid.new_tensor([0.99]), grid[1:]])
    program = build(solver, grid, path).program()
    ends = torch.linspace(grid[0].item(), grid[-1].item(), program.nfe + 1, dtype=torch.float64)
    family = build("bns", ends, path, sigma_0=sigma_0)
    assert isinstance(family, BNS)
    ours = family.program(params_of(family, program))
    for attribute in ("alpha", "sigma"):
        torch.testing.assert_close(getattr(ours, attribute), getattr(program, attribute), **CLOSE)
    for ours_row, row in zip(
        (*ours.evaluations.B, ours.readouts.B[-1]), (*program.evaluations.B, program.readouts.B[-1]), strict=True
    ):
        torch.testing.assert_close(ours_row, row, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ours.readouts.A[-1], program.readouts.A[-1], rtol=1e-7, atol=1e-9)


def test_bns_has_the_number_of_params_of_the_paper() -> None:
    for n in (4, 8, 16):
        params = build("bns", uneven("flow", n), "flow").init(0)
        lower = int(torch.ones_like(params["b"]).tril().sum())
        assert params["a"].numel() + lower + (n + 1) == n * (n + 5) // 2 + 1


@everywhere
@pytest.mark.parametrize("name", ["s4s", "s4s_alt"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("lower_order_final", [True, False])
def test_s4s_starts_as_dpmpp(name: str, order: int, lower_order_final: bool, path: str) -> None:
    grid = uneven(path, 6)
    ours = build(name, grid, path, order=order, lower_order_final=lower_order_final)
    theirs = build("dpmpp", grid, path, order=min(order, 3), lower_order_final=lower_order_final)
    assert_same(ours.program(ours.init(0)), theirs.program())


@everywhere
def test_learned_steps_keep_the_ends_and_invert(path: str) -> None:
    grid = uneven(path).tolist()
    raw = raw_steps(to_regular(make_path(path), torch.tensor(grid, dtype=torch.float64)))
    s = learned_grid(make_path(path), grid, raw)
    torch.testing.assert_close(s, torch.tensor(grid, dtype=torch.float64), **CLOSE)
    moved = learned_grid(make_path(path), grid, raw + torch.randn(STEPS, dtype=torch.float64))
    assert (moved[0], moved[-1]) == (grid[0], grid[-1]) and bool((moved[1:] < moved[:-1]).all())


@pytest.mark.parametrize(
    ("name", "learning_rate", "share"),
    [("dss", 0.05, 0.4), ("bns", 0.005, 0.4), ("s4s", 0.05, 0.8), ("s4s_alt", 0.005, 0.65)],
)
def test_training_leaves_a_share_of_the_error_of_the_start(name: str, learning_rate: float, share: float) -> None:
    """On held-out noise, against a fine solve, after 150 steps of Adam with cosine decay."""
    denoiser, family = toy_mixture(), build(name, Grid(steps=5))
    noise = [torch.randn(1024, 6, dtype=torch.float64) for _ in range(2)]
    ends = [sample(build("heun", Grid(steps=60)).program(), denoiser, z) for z in noise]
    params = {key: value.requires_grad_() for key, value in family.init(0).items()}
    optimizer = torch.optim.Adam(params.values(), lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)

    def held_out() -> float:
        program = family.program(params).detach()
        return rmse(sample(program, denoiser, noise[1]), ends[1]).mean().item()

    start = held_out()
    for _ in range(150):
        optimizer.zero_grad()
        mse(sample(family.program(params), denoiser, noise[0]), ends[0]).mean().backward()
        optimizer.step()
        scheduler.step()
    assert held_out() < share * start


def test_log_mse_is_the_log_per_sample() -> None:
    a, b = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    torch.testing.assert_close(log_mse(a, b), mse(a, b).log())
    assert log_mse(a, a).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dss", {"init_from": "start"}, "known: uniform, grid"),
        ("dss", {"time_floor": 90.0}, "must lie below the grid's start"),
        ("bns", {"init_from": "start"}, "known: uniform, grid"),
        ("bns", {"init_solver": "heun"}, "known: euler, midpoint"),
        ("bns", {"init_solver": "midpoint"}, "5 steps are odd"),
        ("bns", {"sigma_0": 0.0}, "sigma_0 of bns must be positive"),
        ("s4s", {"order": 0}, "order of s4s must be at least 1"),
        ("s4s_alt", {"order": 0}, "order of s4s_alt must be at least 1"),
    ],
)
def test_a_wrong_hyperparameter_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, uneven("edm", 5), **options)


def test_what_cannot_be_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="as many rows and columns"):
        published_params([0.5, 0.5], [[0.0]])
    with pytest.raises(ValueError, match="must be positive"):
        published_params([1.0, 0.0], torch.zeros(2, 2))
