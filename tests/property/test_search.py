"""Searches of grids: exact where they claim to be, seeded, and better than the grids they start from."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill import families
from solverdistill.denoisers.wrappers import Counted
from solverdistill.fits.grid_search.search import (
    GITS,
    OSS,
    cheapest_path,
    insert_analytical_step,
    jump_costs,
    make_method,
    median_steps,
    optimal_steps,
    search_grid,
)
from solverdistill.noise.grids import Grid, grid_values
from solverdistill.noise.paths import EDM, VP, Flow, Path
from solverdistill.objectives.distances import rmse
from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.references.solving import Reference, solve_reference
from solverdistill.references.trajectory import Trajectory
from solverdistill.teachers.digits import digits_kde
from solverdistill.teachers.mixture import Mixture, toy_mixture

RANGES: dict[str, tuple[Path, tuple[float, float]]] = {
    "edm": (EDM(), (80.0, 0.002)),
    "flow": (Flow(), (1.0, 0.0)),
    "vp": (VP(), (1.0, 1e-3)),
}


def teacher_on(name: str) -> Mixture:
    teacher = toy_mixture()
    teacher.path, teacher.noise_range = RANGES[name]
    return teacher


def euler_reference(path: Path, clock: Tensor, batch: int = 4) -> Trajectory:
    levels = [float(path.from_clock(path.clock_of(EDM().level(u)))) for u in clock]
    noise = torch.randn(batch, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return solve_reference(families.build("euler", levels, path), toy_mixture(), noise)


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.15, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_cheapest_path_is_the_cheapest_of_all(steps: int, gamma: float) -> None:
    costs = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(steps))

    def total(path: tuple[int, ...]) -> float:
        return sum(gamma**m * float(costs[i, j]) for m, (i, j) in enumerate(itertools.pairwise(path)))

    every = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), steps - 1)]
    assert cheapest_path(costs, steps, gamma) == list(min(every, key=total))


def test_ties_go_to_the_first_index() -> None:
    assert cheapest_path(torch.zeros(8, 8, dtype=torch.float64), 4, 1.15) == [0, 1, 2, 3, 7]


@pytest.mark.parametrize("metric", ["dev", "l1", "l2"])
def test_jump_costs_are_those_of_euler_steps(metric: str) -> None:
    """Jumps of one point are steps of the Euler reference itself; others are played one by one."""
    reference = euler_reference(EDM(), torch.tensor([10.0, 4.0, 1.0, 0.3, 0.1], dtype=torch.float64))
    costs = jump_costs(reference, metric)
    torch.testing.assert_close(costs.diagonal(1), torch.zeros(4, dtype=torch.float64), rtol=0.0, atol=1e-13)
    assert bool((costs.tril() == 0).all())
    first, last = reference.states[0], reference.states[-1]
    for i, j in itertools.combinations(range(5), 2):
        jumped = reference.states[i] + (reference.clock[j] - reference.clock[i]) * reference.slopes[i]
        expected = []
        for b in range(4):
            ends = jumped[b], reference.states[j, b]
            if metric == "dev":
                far = [distance_from_line(y, first[b], last[b]) for y in ends]
                expected.append(far[0] - far[1])
            else:
                expected.append((ends[0] - ends[1]).norm(p=int(metric[1])))
        torch.testing.assert_close(costs[i, j], torch.stack(expected).mean(), rtol=0.0, atol=1e-7)


def distance_from_line(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """From the area of a parallelogram: sqrt(|p|^2 |q|^2 - (p.q)^2) / |q|."""
    p, q = y - a, b - a
    return ((p @ p) * (q @ q) - (p @ q) ** 2).clamp(min=0).sqrt() / q.norm()


def test_oss_is_exact_up_to_two_steps() -> None:
    """One beginning gives one state at every point, so that nothing is lost before the third step."""
    reference = euler_reference(EDM(), torch.logspace(1, -1, 9, dtype=torch.float64))
    for steps in (1, 2):
        every = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), steps - 1)]
        found = optimal_steps(reference, toy_mixture(), steps)
        for b in range(4):
            errors = {path: float((roll(reference, path, b) - reference.states[-1, b]).norm()) for path in every}
            assert tuple(found[b].tolist()) == min(errors, key=errors.__getitem__)


def test_free_start_begins_with_the_noise_itself() -> None:
    """One step from pure noise at any point, in flow coordinates; a step from further down can end nearer."""
    noise = torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    family = families.build("euler", torch.linspace(1, 0, 9, dtype=torch.float64), "flow")
    reference = solve_reference(family, toy_mixture(), noise)
    found = optimal_steps(reference, toy_mixture(), 1, free_start=True)[:, 0]
    alpha, sigma = ((torch.arange(9) / 8)[:8, None].expand(8, 16), (1 - torch.arange(9) / 8)[:8, None].expand(8, 16))
    ends = torch.stack([toy_mixture()(noise, a.double(), s.double()) for a, s in zip(alpha, sigma, strict=True)])
    assert torch.equal(found, (ends - reference.states[-1]).norm(dim=2).argmin(0))
    assert bool((found > 0).any())
    assert bool((optimal_steps(reference, toy_mixture(), 1)[:, 0] == 0).all())


def roll(reference: Trajectory, points: tuple[int, ...], b: int) -> Tensor:
    """Euler steps of one sample through some points, from its initial state."""
    y, clock = reference.states[0, b : b + 1], reference.clock
    for i, j in itertools.pairwise(points):
        alpha, sigma = (value.expand(1) for value in reference.path.straight(clock[i]))
        y = y + (clock[j] - clock[i]) * (y - toy_mixture()(y, alpha, sigma)) / clock[i]
    return y[0]


def test_oss_steps_are_the_same_on_every_path() -> None:
    clock = torch.logspace(1.5, -2, 21, dtype=torch.float64)
    on = {path.name: optimal_steps(euler_reference(path, clock), toy_mixture(), 4) for path in (EDM(), Flow(), VP())}
    assert torch.equal(on["edm"], on["flow"]) and torch.equal(on["edm"], on["vp"])


def test_oss_rows_belong_to_samples_and_shared_rows_to_all() -> None:
    reference, teacher = euler_reference(EDM(), torch.logspace(1.5, -2, 21, dtype=torch.float64)), toy_mixture()
    paths = optimal_steps(reference, teacher, 5)
    assert len({tuple(row) for row in paths.tolist()}) > 1
    assert bool((paths.diff(dim=1) > 0).all()) and bool((paths[:, 0] == 0).all()) and bool((paths[:, -1] == 20).all())
    for b in range(4):
        alone = reference.take(torch.tensor([b]))
        assert torch.equal(optimal_steps(alone, teacher, 5)[0], paths[b])
        assert torch.equal(optimal_steps(alone, teacher, 5, shared=True)[0], paths[b])
    shared = optimal_steps(reference, teacher, 5, shared=True)
    assert torch.equal(shared, shared[:1].expand(4, -1))
    assert optimal_steps(reference, teacher, 20).tolist() == [[*range(21)]] * 4


def test_median_is_rounded_to_clean_data_and_stays_increasing() -> None:
    paths = torch.tensor([[0, 1, 2, 9], [0, 4, 7, 9], [0, 2, 5, 9], [0, 3, 4, 9]])
    assert median_steps(paths) == [0, 3, 5, 9]
    assert median_steps(paths[:3]) == [0, 2, 5, 9]


@pytest.mark.parametrize("method", [GITS(), GITS(metric="l2"), OSS(), OSS(combine="median")], ids=str)
@pytest.mark.parametrize("path", sorted(RANGES))
def test_searched_grid_beats_the_one_it_was_searched_against(method: GITS | OSS, path: str) -> None:
    """Euler on held-out noise at six steps: the points are chosen from the rule of the grid that is beaten."""
    teacher, reference = teacher_on(path), Reference(steps=60)
    found = search_grid(method, teacher, teacher, 6, reference=reference, samples=32)
    noise, _ = seeded_noise(range(SPLITS["test"], SPLITS["test"] + 128), teacher)
    exact = Reference(steps=120).solve(teacher, teacher, noise).end()

    def error(levels: tuple[float, ...]) -> float:
        *_, end = families.build("euler", levels, teacher.path).solve(teacher, noise.double())
        return float(rmse(end, exact).mean())

    uniform = grid_values(Grid("polynomial", 6, *teacher.noise_range), teacher.path)
    assert error(found.levels) < 0.75 * error(uniform)


@pytest.mark.parametrize("path", sorted(RANGES))
@pytest.mark.parametrize("method", ["gits", "oss"])
def test_search_is_seeded_counts_and_returns_points_of_the_fine_grid(method: str, path: str) -> None:
    teacher, reference = teacher_on(path), Reference(steps=20)
    counted = Counted(teacher)
    found = search_grid(method, teacher, counted, 4, reference=reference, samples=10)
    again = search_grid(method, teacher, teacher, 4, reference=reference, samples=10, batch_size=3)
    assert found == again
    assert found.evaluations == counted.images
    solved = 10 * (21 - (teacher.noise_range[1] == 0))  # the slope at clean data costs nothing
    # OSS: once from the beginning, and from every point that leaves one for each of the other steps.
    assert found.evaluations == solved + (0 if method == "gits" else 10 * (1 + 3 * 17))
    fine = reference.levels(teacher.path, teacher.noise_range)
    assert found.levels == tuple(fine[i] for i in found.indices)
    assert (found.levels[0], found.levels[-1]) == teacher.noise_range
    few = [search_grid(method, teacher, teacher, 4, reference=reference, samples=2, seed=seed) for seed in range(4)]
    assert len({grid.levels for grid in few}) > 1
    for name in ("euler", "heun", "dpmpp", "ipndm", "unipc"):
        assert families.build(name, found.levels, teacher.path).steps == 4


def test_search_takes_conditions() -> None:
    teacher = digits_kde(0.15)
    found = search_grid("oss", teacher, teacher, 3, reference=Reference(steps=8), samples=5, batch_size=2)
    assert found == search_grid("oss", teacher, teacher, 3, reference=Reference(steps=8), samples=5)


def test_analytical_step_is_inserted_where_it_ends_nearest() -> None:
    teacher, fine = teacher_on("edm"), Reference(steps=30)
    plain, found = (
        search_grid(GITS(afs=afs), teacher, teacher, 4, reference=fine, samples=12) for afs in (False, True)
    )
    assert [*found.indices[:1], *found.indices[2:]] == list(plain.indices)
    levels = fine.levels(teacher.path, teacher.noise_range)
    noise, _ = seeded_noise(range(12), teacher)
    reference = fine.solve(teacher, teacher, noise)

    def distance(k: int) -> float:
        grid = [levels[i] for i in (0, k, *plain.indices[1:])]
        family = families.build("ipndm", grid, afs=True)
        assert family.nfe == 4
        *_, end = family.solve(teacher, noise.double())
        return float((end - reference.end()).norm(dim=1).mean())

    assert found.indices[1] == min(range(1, plain.indices[1]), key=distance)
    no_room = insert_analytical_step(reference, levels, [0, 1, 30], noise, teacher)
    assert no_room == [0, 1, 30]


def test_search_over_61_points_takes_no_time() -> None:
    teacher = teacher_on("edm")
    noise, _ = seeded_noise(range(256), teacher)
    reference = Reference(steps=60).solve(teacher, teacher, noise)
    start = time.perf_counter()
    cheapest_path(jump_costs(reference), 10)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda r: jump_costs(r, "l3"), "metric 'l3' of gits is unknown; known: dev, l1, l2"),
        (lambda r: cheapest_path(jump_costs(r), 5), "5 steps cannot be chosen from 4 fine steps"),
        (lambda r: cheapest_path(jump_costs(r), 0), "0 steps cannot be chosen from 4 fine steps"),
        (lambda r: cheapest_path(jump_costs(r), 2, gamma=0.0), "gamma of gits must be above 0"),
        (lambda r: optimal_steps(r, toy_mixture(), 5), "5 steps cannot be chosen from 4 fine steps"),
        (lambda r: make_method("dp"), "search method 'dp' is unknown; known: gits, oss"),
        (lambda r: make_method("oss", {"gamma": 1.0}), "'oss' has no setting 'gamma'; it has: combine"),
        (lambda r: replace(GITS(), metric="l3"), "metric 'l3' of gits is unknown"),
        (lambda r: OSS(combine="mean"), "combine='mean' of oss is unknown; known: shared, median"),
    ],
)
def test_mistakes_are_one_sentence(call: Any, sentence: str) -> None:
    reference = euler_reference(EDM(), torch.tensor([10.0, 4.0, 1.0, 0.3, 0.1], dtype=torch.float64))
    with pytest.raises(ValueError, match=sentence):
        call(reference)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"steps": True}, {"samples": 0}, {"batch_size": 1.5}])
def test_sizes_are_positive_integers(setting: dict[str, Any]) -> None:
    sizes: Any = {"steps": 3, **setting}
    with pytest.raises(TypeError, match=f"{next(iter(setting))} of a search must be an integer of at least 1"):
        search_grid("gits", toy_mixture(), toy_mixture(), **sizes)
