"""Least squares: rows that are linear problems, exact recovery, ridges, shares of the samples, and what is refused."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.denoisers.wrappers import Counted
from solverdistill.families import ROSTER, build
from solverdistill.families.base import Family
from solverdistill.families.learned.dode import DistilledODE
from solverdistill.fits.batches import take
from solverdistill.fits.greedy import fit_dode
from solverdistill.fits.least_squares.fit import LeastSquaresFit, fit_least_squares
from solverdistill.fits.least_squares.linear_rows import LinearTable, Registers, Row
from solverdistill.fits.least_squares.row_equations import KEEP, row_equations
from solverdistill.fits.least_squares.row_fits import fit_rows
from solverdistill.fits.report import Meter
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.references.solving import Reference, solve_reference
from solverdistill.references.trajectory import Trajectory
from solverdistill.teachers.mixture import Mixture, mixture, toy_mixture
from tests.property.test_roster import GRIDS, random_params

LINEAR = [name for name in sorted(ROSTER) if build(name, GRIDS["edm"]).linear_params]
GRID = Grid("polynomial", 4)
STUDENTS: list[tuple[str, dict[str, Any]]] = [
    ("corrected", {"base": "unipc", "order": 3}),
    ("corrected", {"base": "heun"}),
    ("corrected", {"base": "epd"}),
    *((name, {}) for name in LINEAR if name != "corrected"),
]
every_student = pytest.mark.parametrize(("name", "options"), STUDENTS)


def gaussian() -> Mixture:
    """One component: every denoised image, and so every solution, is an affine function of the noise."""
    return mixture(torch.tensor([[0.5, -1.0, 0.3]]), torch.ones(1), torch.tensor([0.6]))


def gaussian_batch(family: Family, count: int = 32) -> Batch:
    """Exact solutions at the student's own grid points: x - mean shrinks as hypot(0.6, sigma)."""
    model, noise, clock = gaussian(), torch.randn(count, 3, dtype=torch.float64), family.timeline.clock
    start = noise * clock[0] - model.means[0].double()
    size = torch.hypot(clock.new_tensor(0.6), clock)
    states = model.means[0].double() + start * (size / size[0])[:, None, None]
    slopes = start * (clock / size / size[0])[:, None, None]
    return Batch(noise, noise[None][:0], states[-1], None, Trajectory(EDM(), clock, states, slopes))


@cache
def mixture_batch(count: int, seed: int = 0) -> Batch:
    teacher, noise = toy_mixture(), torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)).double()
    solved = Reference().solve(teacher, teacher, noise)
    return Batch(noise, noise[None][:0], solved.end(), None, solved)


def part(batch: Batch, index: Tensor) -> Batch:
    assert batch.reference is not None
    return take(batch, index)._replace(reference=batch.reference.take(index))


def error_of(family: Family, params: dict[str, Tensor], batch: Batch) -> float:
    return float(rmse(sample(family.program(params), toy_mixture(), batch.noise), batch.end).mean())


@pytest.mark.parametrize("path", GRIDS)
@every_student
def test_rows_are_affine_in_the_params_that_first_act_in_them(name: str, options: dict[str, Any], path: str) -> None:
    """Moving them by a large step moves their row by the derivative and leaves all rows before as they were."""
    family = build(name, GRIDS[path].with_steps(3), path, **options)
    table = LinearTable(family, random_params(family))
    generator = torch.Generator().manual_seed(0)
    taken: list[int] = []
    for r in [*range(table.nfe), table.last]:
        row, before = table.row(r), [table.coefficients(k) for k in range(min(r, table.nfe))]
        step = torch.randn(len(row.entries), generator=generator, dtype=torch.float64)
        table.move(row.entries, step)
        moved = table.coefficients(r)[: len(row.coefficients)]
        torch.testing.assert_close(moved, row.coefficients + step @ row.jacobian, rtol=1e-9, atol=1e-9)
        for k, kept in enumerate(before):
            torch.testing.assert_close(table.coefficients(k), kept, rtol=1e-12, atol=1e-12)
        taken += row.entries.tolist()
    assert taken and len(set(taken)) == len(taken)


@pytest.mark.parametrize(
    ("name", "options", "form"),
    [
        ("corrected", {"base": "euler"}, "rollout"),
        ("corrected", {"base": "unipc"}, "rollout"),
        ("corrected", {"base": "unipc"}, "teacher_forced"),
        ("dss", {"init_from": "grid"}, "rollout"),
    ],
)
def test_a_student_that_can_be_the_solution_becomes_it(name: str, options: dict[str, Any], form: str) -> None:
    """Denoised images of a Gaussian span two directions, so most of the params are undetermined.

    The first step of dss has none, so that its first state is off and only "rollout" can make up for it.
    """
    family = build(name, GRID, **options)
    batch, fresh = gaussian_batch(family), gaussian_batch(family, 8)
    settings = LeastSquaresFit(form=form, ridge=0.0, batch_size=12)
    params, fits = fit_rows(family, gaussian(), batch, settings)
    ends = sample(family.program(params), gaussian(), fresh.noise)
    before = sample(family.program(family.init(0)), gaussian(), fresh.noise)
    assert rmse(before, fresh.end).mean() > 0.03
    torch.testing.assert_close(ends, fresh.end, rtol=0.0, atol=1e-8)
    assert all(fit.after <= fit.before for fit in fits)


@pytest.mark.parametrize("form", ["rollout", "teacher_forced"])
def test_a_large_ridge_keeps_the_start(form: str) -> None:
    family, batch = build("corrected", GRID, base="unipc"), mixture_batch(16)
    start = {**family.init(0), "told": 0.01 * torch.ones(family.nfe, dtype=torch.float64)}
    for ridge, limit in ((1e14, 1e-9), (1e6, 1e-2)):
        params, _ = fit_rows(family, toy_mixture(), batch, LeastSquaresFit(form=form, ridge=ridge), start)
        assert all(float((params[name] - start[name]).abs().max()) < limit for name in start)
    free, _ = fit_rows(family, toy_mixture(), batch, LeastSquaresFit(form=form, ridge=1e-6), start)
    assert float((free["correction_denoised"] - start["correction_denoised"]).abs().max()) > 0.1
    assert all(torch.equal(free[name], start[name]) for name in ("raw_dt", "told"))


@pytest.mark.parametrize("form", ["rollout", "teacher_forced", "local"])
def test_processes_with_a_share_each_find_what_one_finds(form: str) -> None:
    family, train, held_out = build("corrected", GRID, base="dpmpp"), mixture_batch(24), mixture_batch(16, 1)
    settings, barrier = LeastSquaresFit(form=form, batch_size=5), threading.Barrier(2)
    shared: dict[int, Tensor] = {}
    found: dict[int, Any] = {}

    def work(rank: int) -> None:
        def reduce(value: Tensor) -> Tensor:
            shared[rank] = value
            barrier.wait()
            result = shared[0] + shared[1]
            barrier.wait()
            return result

        ours, theirs = (part(batch, torch.arange(rank, len(batch.noise), 2)) for batch in (train, held_out))
        found[rank] = fit_least_squares(family, toy_mixture(), ours, theirs, settings, reduce=reduce)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    params, report = fit_least_squares(family, toy_mixture(), train, held_out, settings)
    assert all(torch.equal(found[0][0][key], found[1][0][key]) for key in params)
    assert found[0][1].rmse == pytest.approx(report.rmse, rel=1e-6) and found[0][1].note == report.note
    ours, theirs = (sample(family.program(p), toy_mixture(), held_out.noise) for p in (params, found[0][0]))
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)


@every_student
def test_a_fit_is_never_worse_than_its_start_and_reports_what_it_found(name: str, options: dict[str, Any]) -> None:
    family, train, held_out = build(name, GRID, **options), mixture_batch(32), mixture_batch(32, 1)
    counted = Counted(toy_mixture())
    params, report = fit_least_squares(family, counted, train, held_out, LeastSquaresFit(batch_size=16))
    errors = [point.rmse for point in report.history]
    assert errors[0] == pytest.approx(error_of(family, family.init(0), held_out), rel=1e-9)
    assert report.rmse == pytest.approx(error_of(family, params, held_out), rel=1e-6)
    assert errors == sorted(errors, reverse=True) and report.rmse < 0.99 * errors[0]
    assert report.evaluations == counted.images and report.spent["backward"].evaluations == 0
    assert set(params) == set(family.init(0))


@pytest.mark.parametrize("form", ["rollout", "local"])
@pytest.mark.parametrize("path", ["flow", "vp"])
def test_other_paths_are_fitted_from_pure_noise_on(path: str, form: str) -> None:
    teacher, noise = toy_mixture(), torch.randn(48, 6).double()
    solved = solve_reference(build("ipndm", GRIDS[path].with_steps(100), path), teacher, noise)
    family = build("corrected", GRIDS[path].with_steps(4), path, base="dpmpp")
    batch = Batch(noise, noise[None][:0], solved.end(), None, solved if form == "rollout" else None)
    params, report = fit_least_squares(family, teacher, batch, batch, LeastSquaresFit(form=form))
    assert report.rmse < 0.8 * report.history[0].rmse
    assert report.rmse == pytest.approx(error_of(family, params, batch), rel=1e-6)


def test_the_same_samples_give_the_same_params() -> None:
    family, train, held_out = build("corrected", GRID), mixture_batch(32), mixture_batch(16, 1)
    first, report = fit_least_squares(family, toy_mixture(), train, held_out)
    again, same = fit_least_squares(family, toy_mixture(), train, held_out)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert [p.rmse for p in report.history] == [p.rmse for p in same.history] and report.note == same.note
    few, _ = fit_least_squares(family, toy_mixture(), train, held_out, LeastSquaresFit(samples=8))
    alone, _ = fit_least_squares(family, toy_mixture(), part(train, torch.arange(8)), held_out)
    assert all(torch.equal(few[key], alone[key]) for key in few)


def test_a_start_that_is_best_is_returned() -> None:
    """The held-out samples are solved by the start itself; whatever fits the others is worse on them."""
    family, train, held_out = build("corrected", GRID, base="unipc"), mixture_batch(16), mixture_batch(16, 1)
    start = family.init(0)
    held_out = held_out._replace(end=sample(family.program(start), toy_mixture(), held_out.noise))
    params, report = fit_least_squares(family, toy_mixture(), train, held_out, start=start)
    assert report.rmse == report.history[0].rmse < 1e-12
    assert all(torch.equal(params[name], start[name]) for name in start)
    assert report.note == "ridge inf of the evaluations, inf of the sample"


def test_a_network_that_explodes_is_survived() -> None:
    def exploding(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(x, torch.nan)

    family, batch = build("corrected", GRID), mixture_batch(4)
    params, report = fit_least_squares(family, exploding, batch, batch)
    assert report.rmse == float("inf") and all(torch.equal(params[k], v) for k, v in family.init(0).items())


@pytest.mark.parametrize("name", ["dode_ddim", "dode_ipndm", "dode_edm", "dode_dpm"])
def test_with_one_coefficient_per_row_it_is_the_fit_of_d_ode(name: str) -> None:
    family, batch = build(name, GRID), mixture_batch(16)
    assert isinstance(family, DistilledODE) and batch.reference is not None
    params, _ = fit_rows(family, toy_mixture(), batch, LeastSquaresFit(ridge=0.0, batch_size=7))
    expected = fit_dode(family, toy_mixture(), batch.noise, batch.reference)
    torch.testing.assert_close(params["lambdas"], expected["lambdas"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("draw", range(8))
def test_nearly_equal_columns_keep_the_digits_that_their_differences_have(draw: int) -> None:
    """Differences of 1e-6 of the images: plain normal equations would keep 4 digits of the 16, and these keep 10."""
    torch.manual_seed(draw)
    batch = Batch(torch.randn(40, 5).double(), torch.empty(0, 40, 5), torch.empty(40, 5))
    registers = Registers(None, batch, 7, Meter())
    base = torch.randn(40, 5).double()
    registers.images += [base, base + 1e-6 * torch.randn(40, 5).double(), 1e-2 * torch.randn(40, 5).double()]
    row = Row(3, torch.zeros(4, dtype=torch.float64), torch.arange(4), torch.eye(4, dtype=torch.float64))
    expected = float64([0.3, -2.0, 1.5, 0.7])
    target = sum(value * image for value, image in zip(expected, registers.images, strict=True))
    equations = row_equations(row, registers, lambda index: target[index])  # pyright: ignore[reportIndexIssue]
    torch.testing.assert_close(equations.solve(0.0).step, expected, rtol=1e-9, atol=1e-9)
    assert abs(equations.solve(0.0).square) < 1e-14 < float(equations.square)
    assert torch.equal(equations.solve(KEEP).step, torch.zeros(4, dtype=torch.float64))
    matrix = torch.stack([image.flatten() for image in registers.images], dim=1)
    size, ridge = matrix.square().mean(0).sqrt(), 1e-4
    stacked = torch.cat([matrix / len(matrix) ** 0.5, ridge**0.5 * torch.diag(size)])
    wanted = torch.cat([target.flatten() / len(matrix) ** 0.5, torch.zeros(4)])  # pyright: ignore
    ridged = torch.linalg.lstsq(stacked, wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(equations.solve(ridge).step, ridged, rtol=1e-6, atol=1e-8)


def test_what_cannot_be_fitted_is_refused() -> None:
    batch = mixture_batch(2)
    with pytest.raises(ValueError, match="affine, and epd has none; take another fit"):
        fit_least_squares(build("epd", GRID), toy_mixture(), batch, batch)
    with pytest.raises(ValueError, match="form=rollout needs the whole reference trajectories"):
        fit_least_squares(build("corrected", GRID), toy_mixture(), take(batch, torch.arange(2)), batch)
    with pytest.raises(ValueError, match="fit.form is 'global'; known: rollout, teacher_forced, local"):
        LeastSquaresFit(form="global")
    with pytest.raises(ValueError, match="fit.fine_solver is 'rk4'; known: heun, euler"):
        LeastSquaresFit(fine_solver="rk4")
    with pytest.raises(ValueError, match="fit.samples must be at least 1, not 0"):
        LeastSquaresFit(samples=0)
    with pytest.raises(ValueError, match="fit.ridge must be at least 0, not -1"):
        LeastSquaresFit(ridge=-1.0)
    with pytest.raises(TypeError, match="ridge of LeastSquaresFit must be a finite number"):
        LeastSquaresFit(ridge="small")  # pyright: ignore[reportArgumentType]
