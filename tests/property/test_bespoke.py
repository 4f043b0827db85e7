"""Properties of the Bespoke solvers and of their RMSE bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.denoisers.wrappers import Counted
from solverdistill.families import build
from solverdistill.families.base import Params
from solverdistill.families.learned.bespoke import Bespoke
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import Flow, Path, make_path
from solverdistill.objectives.distances import rmse
from solverdistill.objectives.rmse_bound import RMSEBound
from solverdistill.programs.merging import side_by_side
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.references.solving import Reference
from solverdistill.references.trajectory import Trajectory
from solverdistill.teachers.mixture import Mixture, mixture, toy_mixture

N = 4
ENDS = {"edm": (80.0, 0.002), "flow": (1.0, 0.0), "vp": (1.0, 1e-3), "cosine": (1.0, 0.0)}
KINDS = ("bespoke_rk1", "bespoke_rk2")
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}

everywhere = pytest.mark.parametrize("path", ENDS)
both = pytest.mark.parametrize("name", KINDS)


def bespoke(name: str, path: str, steps: int = N) -> Bespoke:
    family = build(name, torch.linspace(*ENDS[path], steps + 1, dtype=torch.float64), path)
    assert isinstance(family, Bespoke)
    return family


def random_params(family: Bespoke, size: float = 0.1) -> Params:
    return {name: value + size * torch.randn_like(value) for name, value in family.init(0).items()}


def noise(batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, dtype=torch.float64)


def velocity(path: Path, start: float, end: float, denoiser: Any) -> Callable[[Tensor, float], Tensor]:
    """dx/dt where t runs from 0 at `start` to 1 at `end` of the path's own unit."""

    def slope(x: Tensor, t: float) -> Tensor:
        s = float64(start + t * (end - start))
        level, rate = path.level(s), path.derivatives(s)
        denoised = denoiser(x, *(value.expand(len(x)) for value in level))
        return (end - start) * (rate.alpha * denoised + rate.sigma * (x - level.alpha * denoised) / level.sigma)

    return slope


def runge_kutta(slope: Callable[[Tensor, float], Tensor], x: Tensor, middle: bool) -> Tensor:
    states = []
    for t in (i / N for i in range(N)):
        increment = slope(x, t) / N
        x = x + (slope(x + increment / 2, t + 0.5 / N) / N if middle else increment)
        states.append(x)
    return torch.stack(states)


@everywhere
@both
def test_initial_params_are_euler_and_midpoint(name: str, path: str) -> None:
    family, z = bespoke(name, path), noise()
    x, (start, end) = z * family.initial_scale(None), ENDS[path]
    if path == "edm":
        slope = velocity(Flow(), start / (1 + start), end / (1 + end), toy_mixture())
        states = runge_kutta(slope, x / (1 + start), middle=name == "bespoke_rk2")
    else:
        states = runge_kutta(velocity(make_path(path), start, end, toy_mixture()), x, middle=name == "bespoke_rk2")
    ours = sample(family.program(family.init(0)), toy_mixture(), z, readouts=True)
    if path == "edm":
        levels = family.prepared_levels(family.init(0))[1:]
        states = states * torch.stack([1 + level.sigma for level in levels])[:, None, None]
    torch.testing.assert_close(ours, states, **CLOSE)


@pytest.mark.parametrize("path", ["edm", "flow"])
def test_reduces_to_ddim_when_params_are_initial(path: str) -> None:
    family = bespoke("bespoke_rk1", path)
    levels = family.prepared_levels(family.init(0))
    program, ddim = family.program(family.init(0)), build("ddim", [float(v.sigma) for v in levels], path).program()
    for attribute in ("A", "B", "alpha", "sigma"):
        torch.testing.assert_close(getattr(program, attribute), getattr(ddim, attribute), **CLOSE)


@both
def test_edm_is_flow_in_other_coordinates(name: str) -> None:
    edm, flow = bespoke(name, "edm"), build(name, [80 / 81, 0.75, 0.5, 0.25, 0.002 / 1.002], "flow")
    params, z = random_params(edm), noise()
    on_flow = sample(flow.program(params), toy_mixture(), z, readouts=True)
    levels = edm.prepared_levels(params)[1:]
    factor = torch.stack([1 + level.sigma for level in levels])
    on_edm = sample(edm.program(params), toy_mixture(), z, readouts=True)
    torch.testing.assert_close(on_edm, on_flow * factor[:, None, None], **CLOSE)
    assert all(bool(level.alpha.isclose(float64(1.0), rtol=1e-14)) for level in levels)


@everywhere
@both
def test_learned_levels_lie_between_the_ends_of_the_grid(name: str, path: str) -> None:
    family = bespoke(name, path)
    levels = family.prepared_levels(random_params(family, size=1.0))
    ratio = torch.stack([level.sigma / level.hypot() for level in levels])
    assert bool((ratio.diff() < 0).all())
    for ours, end in ((levels[0], ENDS[path][0]), (levels[-1], ENDS[path][1])):
        assert torch.equal(torch.stack([*ours]), torch.stack([*family.path.level(end)]))


@pytest.mark.parametrize(("name", "free"), [("bespoke_rk1", 3 * 3 - 1), ("bespoke_rk2", 7 * 3 - 1)])
def test_many_params_give_the_same_solver(name: str, free: int) -> None:
    """The rank of the table's derivative in the params, for 3 steps."""
    family = bespoke(name, "flow", steps=3)
    params = random_params(family)
    sizes = [value.numel() for value in params.values()]

    def table(flat: Tensor) -> Tensor:
        parts = dict(zip(params, flat.split(sizes), strict=True))
        program = family.program(parts)
        return torch.cat([getattr(program, key).flatten() for key in ("A", "B", "alpha", "sigma")])

    jacobian = torch.autograd.functional.jacobian(table, torch.cat([*params.values()]))
    assert int(torch.linalg.matrix_rank(jacobian, rtol=1e-9)) == free  # pyright: ignore[reportArgumentType]


def test_scales_at_the_middles_of_rk2_are_redundant() -> None:
    """The other numbers of a step can make up for any change of them."""
    family, z = bespoke("bespoke_rk2", "flow"), noise()
    params = random_params(family)
    values, ends, middles = family.transformation(params), torch.arange(0, 2 * N, 2), torch.arange(1, 2 * N, 2)
    factor, half = 0.5 + torch.rand(N, dtype=torch.float64), 0.5 / N
    other = {key: value.clone() for key, value in params.items()}
    other["theta_scale"][ends] += factor.log()  # entry k is the scale at point k + 1
    other["w_time_dot"][ends] *= factor
    other["w_time_dot"][middles] /= factor
    scale = values.scale[:-1][ends]
    other["scale_dot"][ends] = ((scale + half * values.scale_dot[ends]) * factor - scale) / half
    torch.testing.assert_close(family.transformation(other).scale[middles], values.scale[middles] * factor)
    states = [sample(family.program(p), toy_mixture(), z, readouts=True) for p in (params, other)]
    torch.testing.assert_close(*states, **CLOSE)


def reference_batch(path: str, denoiser: Mixture, batch: int = 3) -> Batch:
    teacher_path = make_path(path)
    start, end = ENDS[path]
    teacher = Mixture(denoiser.means, denoiser.weights, denoiser.stds, path=teacher_path, noise_range=(start, end))
    z = noise(batch)
    reference = Reference(solver="ipndm", steps=30, grid="time_uniform").solve(teacher, teacher, z)
    return Batch(z, reference.states[:0], reference.end(), reference=reference)


@pytest.mark.parametrize("path", ["edm", "flow", "vp"])
@both
def test_every_gradient_of_the_rmse_bound_is_that_of_finite_differences(name: str, path: str) -> None:
    family, batch, objective = bespoke(name, path), reference_batch(path, toy_mixture()), RMSEBound()
    params = random_params(family)
    params = {key: value.requires_grad_() for key, value in params.items()}

    def loss(*values: Tensor) -> Tensor:
        return objective(family, dict(zip(params, values, strict=True)), toy_mixture(), batch)

    loss(*params.values()).backward()
    for key, value in params.items():
        assert value.grad is not None and bool((value.grad.isfinite() & (value.grad != 0)).all()), key
    torch.autograd.gradcheck(loss, tuple(params.values()), eps=1e-6, atol=1e-5, rtol=1e-4)


def gaussian_batch(centre: Tensor, batch: int) -> Batch:
    """Exact flow trajectories for data ~ N(centre, 1), on which the velocity's Lipschitz constant is at most 1."""
    u, z = torch.linspace(1.0, 0.0, 401, dtype=torch.float64), noise(batch)
    spread = torch.hypot(1 - u, u)
    states = (1 - u)[:, None, None] * centre + spread[:, None, None] * z
    slopes = -centre + ((2 * u - 1) / spread)[:, None, None] * z
    return Batch(z, states[:0], states[-1], reference=Trajectory(Flow(), u, states, slopes))


@both
def test_the_rmse_bound_bounds_the_error_of_the_roll_out(name: str) -> None:
    centre = torch.randn(6, dtype=torch.float64)
    denoiser, batch, family = mixture(centre[None], [1.0], [1.0]), gaussian_batch(centre, 32), bespoke(name, "flow")
    objective, ratios = RMSEBound(lipschitz=1.0), []
    for _ in range(20):
        params = random_params(family)
        bound = objective.weights(family, params) @ objective.step_errors(family, params, denoiser, batch)
        torch.testing.assert_close(bound.mean(), objective(family, params, denoiser, batch))
        ratios.append(rmse(sample(family.program(params), denoiser, batch.noise), batch.end) / bound)
    assert 0.05 < float(torch.stack(ratios).max()) <= 1


@both
def test_the_rmse_bound_is_zero_for_steps_that_are_exact(name: str) -> None:
    """Data in one point: the flow's trajectories are straight lines, and initial params follow them."""
    centre = torch.randn(6, dtype=torch.float64)
    denoiser, family = mixture(centre[None], [1.0], [1e-9]), bespoke(name, "flow")
    u, z = torch.linspace(1.0, 0.0, 11, dtype=torch.float64), noise()
    states = (1 - u)[:, None, None] * centre + u[:, None, None] * z
    batch = Batch(z, states[:0], states[-1], reference=Trajectory(Flow(), u, states, (z - centre).expand_as(states)))
    assert RMSEBound()(family, family.init(0), denoiser, batch) < 1e-12


@both
def test_all_steps_run_as_one_batch(name: str) -> None:
    family, batch, counted = bespoke(name, "flow"), reference_batch("flow", toy_mixture()), Counted(toy_mixture())
    RMSEBound()(family, family.init(0), counted, batch)
    assert (counted.calls, counted.images) == (family.points, family.nfe * len(batch.noise))


def test_programs_side_by_side_give_what_each_gives_alone() -> None:
    grid = Grid(steps=3)
    epd, heun = build("epd", grid), build("heun", grid)
    programs = [epd.step_program(1, epd.init(0)), heun.step_program(2), build("ipndm", grid).step_program(2)]
    inputs = [[noise() for _ in range(program.inputs)] for program in programs]
    merged = side_by_side(programs)
    assert (merged.inputs, merged.nfe, merged.depth) == (1 + 1 + 3, 3 + 2 + 1, 2)
    together = sample(merged, toy_mixture(), [x for group in inputs for x in group], readouts=True)
    alone = [sample(p, toy_mixture(), group, readouts=True) for p, group in zip(programs, inputs, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


def test_what_cannot_be_bounded_is_refused() -> None:
    batch, family = reference_batch("flow", toy_mixture()), bespoke("bespoke_rk1", "flow")
    heun = build("heun", torch.linspace(1.0, 0.0, 5), "flow")
    with pytest.raises(ValueError, match="bespoke_rk1 and bespoke_rk2, not for heun"):
        RMSEBound()(heun, {}, toy_mixture(), batch)
    with pytest.raises(ValueError, match="whole reference trajectory"):
        RMSEBound()(family, family.init(0), toy_mixture(), batch._replace(reference=None))
    with pytest.raises(ValueError, match="objective.lipschitz must be at least 0, not -1"):
        RMSEBound(lipschitz=-1.0)
    with pytest.raises(ValueError, match="not a solver program"):
        family.program({name: 0 * value for name, value in family.init(0).items()})
