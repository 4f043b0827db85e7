"""Point search: exact recovery of points that are in the search, the constraints, and what a fit promises."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
import torch
from torch import Tensor

from solverdistill import families
from solverdistill.denoisers.wrappers import Counted
from solverdistill.families.base import Family, Params
from solverdistill.families.learned.epd import EPD
from solverdistill.fits import point_search
from solverdistill.fits.batches import take_solved
from solverdistill.fits.point_search import (
    RATIOS,
    SMALLEST_WEIGHT,
    PointSearchFit,
    best_choice,
    fit_points,
    search_points,
)
from solverdistill.fits.report import Meter
from solverdistill.noise.grids import Grid
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.references.solving import Reference
from solverdistill.references.trajectory import Trajectory
from solverdistill.teachers.mixture import toy_mixture

GRID = Grid("polynomial", steps=3, start=80.0, end=0.002, rho=7.0)


def student(name: str = "epd", **options: object) -> EPD:
    family = families.build(name, GRID, "edm", **{"init_from": "quadrature", **options})
    assert isinstance(family, EPD)
    return family


def on_path(path: str) -> EPD:
    start, end = {"flow": (0.98, 0.01), "vp": (1.0, 0.001)}[path]
    family = families.build("epd", Grid("time_uniform", 3, start, end), path, init_from="quadrature")
    assert isinstance(family, EPD)
    return family


def solved(count: int, seed: int = 0) -> Batch:
    noise = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    reference = Reference(steps=30).solve(toy_mixture(), toy_mixture(), noise)
    return Batch(noise, noise[None][:0], reference.end(), None, reference)


def played(family: Family, params: Params, batch: Batch) -> Batch:
    """The batch with the student's own states as the reference: its grid is the fine grid."""
    program = family.program(params).detach()
    states = sample(program, toy_mixture(), batch.noise, readouts=True)
    scale = family.timeline.scale
    first = batch.noise * family.start_scale(params) / scale[0]
    straight = torch.stack([first, *(state / scale[i + 1] for i, state in enumerate(states[: family.steps]))])
    reference = Trajectory(family.path, family.timeline.clock, straight, torch.zeros_like(straight))
    return Batch(batch.noise, batch.targets, states[-1], None, reference)


def chosen_params(family: EPD, seed: int) -> Params:
    """Params at ratios that the search tries, with weights and direction scales inside its bounds."""
    generator = torch.Generator().manual_seed(seed)
    params = {name: torch.zeros_like(value) for name, value in family.init(0).items()}
    for i in range(family.steps):
        points = torch.randperm(len(RATIOS), generator=generator)[: family.points].sort().values
        weights = 0.2 + torch.rand(family.points, generator=generator, dtype=torch.float64)
        params["r_params"][i] = torch.logit(torch.tensor(RATIOS, dtype=torch.float64)[points])
        params["weight_s"][i] = weights.log()
        params["scale_dir_params"][i] = 2 * float(torch.rand((), generator=generator) - 0.5)
    return params


def error(family: Family, params: Params, batch: Batch) -> float:
    return float(rmse(sample(family.program(params).detach(), toy_mixture(), batch.noise), batch.end).mean())


@pytest.mark.parametrize("points", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "options"), [("epd", {}), ("epd", {"afs": True}), ("epd_ipndm", {}), ("epd", {"denoise_to_zero": True})]
)
def test_points_of_the_search_are_found_exactly(name: str, options: dict[str, bool], points: int) -> None:
    family = student(name, points=points, **options)
    wanted = chosen_params(family, seed=points)
    batch = played(family, wanted, solved(24))
    found = search_points(family, toy_mixture(), batch, family.init(0), PointSearchFit(batch_size=10), Meter())
    if points < 3:  # of three, others combine to nearly the same slope at large noise
        for constrained, expected in zip(family.prepare(found)[:4], family.prepare(wanted)[:4], strict=True):
            torch.testing.assert_close(constrained, expected, rtol=1e-3, atol=1e-4)
    assert error(family, found, batch) < 1e-3 * error(family, family.init(0), batch)


@pytest.mark.parametrize("path", ["flow", "vp"])
def test_points_are_found_on_paths_with_scales(path: str) -> None:
    family = on_path(path)
    wanted = chosen_params(family, seed=1)
    batch = played(family, wanted, solved(24))
    found = search_points(family, toy_mixture(), batch, family.init(0), PointSearchFit(), Meter())
    assert error(family, found, batch) < 1e-3 * error(family, family.init(0), batch)
    torch.testing.assert_close(family.prepare(found).r[1:], family.prepare(wanted).r[1:])


def test_the_choice_is_the_best_of_all_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(1)
    slopes = torch.randn(5, 40, dtype=torch.float64, generator=generator)
    wanted = slopes[1] * 0.3 + slopes[4] * 0.7 + 0.5 * torch.randn(40, dtype=torch.float64, generator=generator)
    choice = best_choice(slopes @ slopes.T, slopes @ wanted, points=2, reach=0.045)
    grid = torch.linspace(SMALLEST_WEIGHT, 1 - SMALLEST_WEIGHT, 181, dtype=torch.float64)

    def nearest(i: int, j: int) -> float:
        directions = grid[:, None] * slopes[i] + (1 - grid)[:, None] * slopes[j]
        scales = torch.linspace(1 - 0.045, 1 + 0.045, 91, dtype=torch.float64)
        return float((scales[:, None, None] * directions - wanted).pow(2).sum(-1).min())

    best = min(combinations(range(5), 2), key=lambda pair: nearest(*pair))
    assert tuple(choice.points.tolist()) == best
    made = choice.scale * (choice.weights[:, None] * slopes[choice.points]).sum(0)
    assert float((made - wanted).pow(2).sum()) == pytest.approx(nearest(*best), rel=1e-3)


@pytest.mark.parametrize(("target", "reach"), [(3.0, 0.045), (-1.0, 0.045), (1.0, 0.0)])
def test_weights_and_scales_keep_from_the_ends_of_their_ranges(target: float, reach: float) -> None:
    slopes = torch.eye(12, dtype=torch.float64)
    choice = best_choice(slopes @ slopes.T, slopes @ (target * slopes[3]), points=2, reach=reach)
    assert float(choice.weights.sum()) == pytest.approx(1) and bool((choice.weights > SMALLEST_WEIGHT - 1e-12).all())
    assert abs(float(choice.scale) - 1) <= reach + 1e-12


def test_products_that_are_not_finite_give_even_weights() -> None:
    nothing = torch.full((12, 12), float("nan"), dtype=torch.float64)
    choice = best_choice(nothing, nothing[0], points=2, reach=0.045)
    assert choice.weights.tolist() == [0.5, 0.5] and float(choice.scale) == 1.0


def test_scales_that_are_switched_off_or_held_stay_at_one() -> None:
    batch = solved(8)
    for options in ({"scale_dir": 0.0}, {"fcn": True}):
        family = student(**options)
        found = search_points(family, toy_mixture(), batch, family.init(0), PointSearchFit(), Meter())
        assert bool((family.prepare(found).scale_dir[-1] == 1).all())
    assert bool((found["scale_dir_params"][:-1] != 0).any())


@pytest.mark.parametrize("name", ["epd", "epd_ipndm"])
def test_the_fit_lowers_the_error_counts_its_evaluations_and_keeps_the_times(name: str) -> None:
    family, train, held_out, counted = (
        student(name, learn_times=True),
        solved(48),
        solved(32, 1),
        Counted(toy_mixture()),
    )
    start = family.init(0)
    start["raw_dt"][0] = 0.2
    params, report = fit_points(family, counted, train, held_out, PointSearchFit(samples=40, batch_size=16), start)
    assert counted.images == report.evaluations == 40 * 13 * 3 + 2 * 32 * family.nfe
    assert report.history[0].rmse == pytest.approx(error(family, start, held_out))
    assert report.rmse == pytest.approx(error(family, params, held_out)) and report.rmse < 0.7 * report.history[0].rmse
    assert torch.equal(params["raw_dt"], start["raw_dt"])
    again, _ = fit_points(family, toy_mixture(), train, held_out, PointSearchFit(samples=40, batch_size=40), start)
    for value, same in zip(params.values(), again.values(), strict=True):
        torch.testing.assert_close(value, same, rtol=1e-6, atol=1e-6)


def test_a_start_that_is_better_stays() -> None:
    family = student()
    wanted = chosen_params(family, seed=3)
    wanted["r_params"] += 0.1  # between the points that are tried
    train = played(family, wanted, solved(16))
    params, report = fit_points(family, toy_mixture(), train, train, start=wanted)
    assert params is wanted and report.rmse == report.history[0].rmse == 0
    assert "worse than the start" in report.note


def test_a_teacher_that_explodes_is_survived() -> None:
    def exploding(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x * float("inf")

    batch, family = solved(4), student()
    params, report = fit_points(family, exploding, batch, batch)
    assert all(bool(torch.isfinite(value).all()) for value in params.values()) and report.rmse == float("inf")


def test_processes_find_the_same_as_one_from_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    family, batch, sums = student(), solved(12), list[Tensor]()
    alone = search_points(family, toy_mixture(), batch, family.init(0), PointSearchFit(), Meter())

    def note(value: Tensor) -> Tensor:
        sums.append(value)
        return value

    monkeypatch.setattr(point_search, "total", note)
    search_points(family, toy_mixture(), batch, family.init(0), PointSearchFit(), Meter())
    of_all, shares = sums.copy(), []
    for rank in (0, 1):
        sums.clear()
        reduced = iter(of_all)
        monkeypatch.setattr(
            point_search, "total", lambda value, reduced=reduced: (sums.append(value), next(reduced))[1]
        )
        own = take_solved(batch, torch.arange(rank, 12, 2))
        found = search_points(family, toy_mixture(), own, family.init(0), PointSearchFit(), Meter())
        for name, value in alone.items():
            assert torch.equal(found[name], value)
        shares.append(sums.copy())
    for first, second, both in zip(*shares, of_all, strict=True):
        torch.testing.assert_close(first + second, both, rtol=1e-9, atol=1e-9)


def test_errors_name_the_way_out() -> None:
    batch = solved(4)
    with pytest.raises(ValueError, match=re.escape("corrected has none, take fit=gauss_newton")):
        fit_points(families.build("corrected", GRID), toy_mixture(), batch, batch)
    with pytest.raises(ValueError, match="chooses among 12 points, too few for solver.points=13"):
        fit_points(student(points=13), toy_mixture(), batch, batch)
    with pytest.raises(ValueError, match="make dense targets"):
        fit_points(student(), toy_mixture(), batch._replace(reference=None), batch)
    with pytest.raises(ValueError, match="fit.samples must be at least 1, not 0"):
        PointSearchFit(samples=0)
