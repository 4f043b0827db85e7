"""Properties of the D-ODE solvers and of their closed-form fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.base import Params
from solverdistill.families.learned.dode import DistilledODE
from solverdistill.fits.greedy import fit_dode
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import VP, make_path
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.programs.tracing import Eager
from solverdistill.references.solving import Reference
from solverdistill.teachers.mixture import Mixture, toy_mixture

STEPS = 5
GRIDS = {
    "edm": Grid(steps=STEPS),
    "flow": Grid(kind="flow_shift", steps=STEPS, start=1.0, end=0.02, shift=3.0),
    "vp": Grid(kind="time_uniform", steps=STEPS, start=1.0, end=1e-3),
}
CLASSICAL: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("dode_ddim", {}, "euler", {}),
    ("dode_ipndm", {}, "ipndm", {}),
    ("dode_ipndm", {"max_order": 2}, "ipndm", {"max_order": 2}),
    ("dode_deis", {}, "deis", {}),
    ("dode_deis", {"mode": "rhoab", "max_order": 3}, "ipndm_v", {"max_order": 3}),
    ("dode_edm", {}, "heun", {}),
    ("dode_dpm", {"spacing": "logsnr"}, "dpm2", {}),
]
FAMILIES = [("dode_ddim", {}), ("dode_ipndm", {}), ("dode_deis", {}), ("dode_edm", {}), ("dode_dpm", {})]
FAMILIES += [("dode_dpm", {"order": 3}), ("dode_dpm", {"order": 3, "spacing": "logsnr"})]
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}

everywhere = pytest.mark.parametrize("path", GRIDS)
every_family = pytest.mark.parametrize(("name", "options"), FAMILIES)


def dode(name: str, path: str, grid: Any = None, **options: Any) -> DistilledODE:
    family = build(name, GRIDS[path] if grid is None else grid, path, **options)
    assert isinstance(family, DistilledODE)
    return family


def noise(batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, dtype=torch.float64)


def random_params(family: DistilledODE) -> Params:
    return {"lambdas": 0.3 * torch.randn(family.shape, dtype=torch.float64)}


def without_effect(family: DistilledODE) -> Tensor:
    """The lambdas that no state depends on. Shape as the lambdas."""
    unused = torch.zeros(family.shape, dtype=torch.bool)
    unused.view(-1)[0] = family.path.name in ("edm", "flow")
    if family.name == "dode_dpm" and family.grid[-1] == 0:
        unused[-1, 1:] = True
    return unused


@everywhere
@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("to_zero", [False, True])
@pytest.mark.parametrize(("name", "options", "classical", "same"), CLASSICAL)
def test_reduces_to_its_classical_solver_when_lambdas_are_zero(
    name: str, options: dict[str, Any], classical: str, same: dict[str, Any], afs: bool, to_zero: bool, path: str
) -> None:
    levels = GRIDS[path].values(make_path(path))
    grid = torch.cat([levels[:-1], float64([0.0])]) if to_zero else levels
    family = dode(name, path, grid, afs=afs, **options)
    program, wanted = family.program(family.init(0)), build(classical, grid, path, afs=afs, **same).program()
    for attribute in ("A", "B", "alpha", "sigma"):
        torch.testing.assert_close(getattr(program, attribute), getattr(wanted, attribute), **CLOSE)
    assert program.stages == wanted.stages


def dpm_solver_3(denoiser: Any, x: Tensor, grid: list[float], path: VP, lambdas: Tensor) -> Tensor:
    """Third-order singlestep DPM-Solver in noise prediction, written in alpha, sigma and log(alpha / sigma)."""

    def eps(x: Tensor, s: Tensor) -> Tensor:
        alpha, sigma = path.level(s)
        return (x - alpha * denoiser(x, alpha.expand(len(x)), sigma.expand(len(x)))) / sigma

    last = x
    for i, (start, end) in enumerate(zip(grid, grid[1:], strict=False)):
        times = [float64(start + k / 3 * (end - start)) for k in range(4)]
        (a, _), (a1, s1), (a2, s2), (a3, s3) = (path.level(time) for time in times)
        half_log_snr = [path.half_log_snr(time) for time in times]
        h, r1, r2 = (
            half_log_snr[3] - half_log_snr[0],
            *((value - half_log_snr[0]) / (half_log_snr[3] - half_log_snr[0]) for value in half_log_snr[1:3]),
        )
        e = eps(x, times[0])
        x1 = a1 / a * x - s1 * torch.expm1(r1 * h) * (e + lambdas[i, 0] * (e - last))
        e1 = eps(x1, times[1])
        change = e1 + lambdas[i, 1] * (e1 - e) - e
        second = torch.expm1(r2 * h) / (r2 * h) - 1
        x2 = a2 / a * x - s2 * torch.expm1(r2 * h) * e - r2 / r1 * s2 * second * change
        e2 = eps(x2, times[2])
        change = e2 + lambdas[i, 2] * (e2 - e1) - e
        x = a3 / a * x - s3 * torch.expm1(h) * e - s3 / r2 * (torch.expm1(h) / h - 1) * change
        last = e2
    return x


def test_order_three_is_dpm_solver_3() -> None:
    family, z = dode("dode_dpm", "vp", order=3), noise()
    for params in (family.init(0), random_params(family)):
        expected = dpm_solver_3(toy_mixture(), z, list(family.grid), VP(), params["lambdas"])
        torch.testing.assert_close(sample(family.program(params), toy_mixture(), z), expected, **CLOSE)


@pytest.mark.parametrize("path", ["vp", "edm"])
@pytest.mark.parametrize("order", [2, 3])
def test_singlestep_orders_are_nominal(order: int, path: str) -> None:
    """On a stretch without the stiff ends, against a fine solve of the same order."""
    ends, z = {"vp": (0.6, 0.2), "edm": (3.0, 0.5)}[path], noise(batch=8)
    rule = Grid(kind="logsnr", start=ends[0], end=ends[1])
    families = [dode("dode_dpm", path, rule.with_steps(n), order=order) for n in (8, 16, 512)]
    *coarse, fine = (list(f.solve(toy_mixture(), z, f.init(0)))[-1] for f in families)
    errors = [float((x - fine).square().mean().sqrt()) for x in coarse]
    assert 2 ** (order - 0.5) < errors[0] / errors[1] < 2 ** (order + 0.8)


@everywhere
@every_family
def test_gradients_are_those_of_finite_differences(name: str, options: dict[str, Any], path: str) -> None:
    family, z, denoiser = dode(name, path, **options), noise(batch=2), toy_mixture()
    lambdas = random_params(family)["lambdas"].requires_grad_()

    def end(lambdas: Tensor) -> Tensor:
        return sample(family.program({"lambdas": lambdas}), denoiser, z)

    torch.autograd.gradcheck(end, lambdas, eps=1e-6, atol=1e-6, rtol=1e-4)
    (gradient,) = torch.autograd.grad((end(lambdas) * torch.randn_like(z)).sum(), lambdas)
    assert torch.equal(gradient == 0, without_effect(family))


@everywhere
@pytest.mark.parametrize("to_zero", [False, True])
@every_family
def test_the_fit_finds_the_lambdas_of_states_that_the_student_can_reach(
    name: str, options: dict[str, Any], to_zero: bool, path: str
) -> None:
    levels = GRIDS[path].values(make_path(path))
    grid = torch.cat([levels[:-1], float64([0.0])]) if to_zero else levels
    family, z, denoiser = dode(name, path, grid, **options), noise(), toy_mixture()
    params = random_params(family)
    corrected, correct = family.corrected_levels(), family.prepare(params)
    states = [torch.zeros_like(z)] * len(corrected)

    def record(k: int, y: Tensor, direction: Tensor) -> Tensor:
        result = correct(k, y, direction)
        scale = corrected[k].hypot() / family.path.straight(family.path.clock_of(corrected[k])).hypot()
        states[k] = result * scale
        return result

    *_, (end, _) = family.roll_out(z, Eager(denoiser), record)
    torch.testing.assert_close(end, sample(family.program(params), denoiser, z), **CLOSE)
    fitted = fit_dode(family, denoiser, z, torch.stack(states))["lambdas"]
    wanted = params["lambdas"].masked_fill(without_effect(family), 0.0)
    torch.testing.assert_close(fitted, wanted, rtol=1e-6, atol=1e-6)


def solved(path: str, batch: int) -> tuple[Mixture, Tensor, Any]:
    toy, grid = toy_mixture(), GRIDS[path].values(make_path(path))
    ends = (float(grid[0]), float(grid[-1]))
    teacher = Mixture(toy.means, toy.weights, toy.stds, path=make_path(path), noise_range=ends)
    z = noise(batch)
    return (
        teacher,
        z,
        Reference(steps=100, grid="polynomial" if path == "edm" else "time_uniform").solve(teacher, teacher, z),
    )


@pytest.mark.parametrize("path", ["edm", "flow"])
@pytest.mark.parametrize("name", ["dode_ddim", "dode_edm", "dode_dpm"])
def test_a_fitted_solver_is_closer_to_the_teacher_on_held_out_noise(name: str, path: str) -> None:
    family, (teacher, z, reference) = dode(name, path), solved(path, 256)
    fitted = fit_dode(family, teacher, z, reference)
    teacher, z, reference = solved(path, 256)
    errors = [
        float(rmse(sample(family.program(params), teacher, z), reference.end()).mean())
        for params in (family.init(0), fitted)
    ]
    assert errors[1] < 0.95 * errors[0]


def test_the_fit_passes_the_condition_and_keeps_no_graph() -> None:
    family, (teacher, z, reference) = dode("dode_ddim", "edm"), solved("edm", 8)
    seen: list[Any] = []

    def conditional(x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        seen.append(cond)
        return teacher(x, alpha, sigma)

    labels = torch.zeros(8, dtype=torch.int64)
    fitted = fit_dode(family, conditional, z.requires_grad_(), reference, labels)
    assert len(seen) == family.nfe and all(cond is labels for cond in seen)
    assert fitted["lambdas"].dtype == torch.float64 and not fitted["lambdas"].requires_grad


def test_what_cannot_be_fitted_or_built_is_refused() -> None:
    family, z = dode("dode_edm", "edm"), noise()
    with pytest.raises(ValueError, match="dode_edm has 10 lambdas and needs as many target states, not 5"):
        fit_dode(family, toy_mixture(), z, z.expand(5, 4, 6))
    with pytest.raises(ValueError, match="euler has none"):
        fit_dode(build("euler", GRIDS["edm"]), toy_mixture(), z, z[None])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="order of dode_dpm must be 2 or 3, not 4"):
        dode("dode_dpm", "edm", order=4)
    with pytest.raises(ValueError, match="known: time, logsnr"):
        dode("dode_dpm", "edm", spacing="sigma")
