"""The race of starts: who takes part, who wins, and what it costs."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from solverdistill import families
from solverdistill.denoisers.wrappers import Counted
from solverdistill.families.base import Params
from solverdistill.families.learned.epd import EPD
from solverdistill.families.student import Student
from solverdistill.fits.race.entrants import entrants, from_lower
from solverdistill.fits.race.fit import RaceFit, run_race
from solverdistill.fits.report import FitReport
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import VP
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.tracing import Trace
from solverdistill.references.batch import Batch
from solverdistill.references.solving import Reference
from solverdistill.teachers.mixture import toy_mixture

SETTINGS = RaceFit(first=16)  # of six numbers each


def solved(count: int, generator: torch.Generator | None = None) -> Batch:
    noise = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    reference = Reference(steps=30).solve(toy_mixture(), toy_mixture(), noise)
    return Batch(noise, noise[None][:0], reference.end(), None, reference)


def student(name: str = "corrected", nfe: int = 4, **options: object) -> Student:
    return Student.build(name, nfe, Grid("polynomial", rho=7.0), "edm", options)


@cache
def batch_of_all() -> Batch:
    """Samples that the races of several tests share, with the races."""
    return solved(64, torch.Generator().manual_seed(0))


@cache
def raced(name: str, nfe: int, settings: RaceFit = SETTINGS, **options: object) -> tuple[Student, Params, FitReport]:
    """What `run_race` makes of a student on those samples; made once, for all tests that look at it."""
    return run_race(student(name, nfe, **options), toy_mixture(), batch_of_all(), batch_of_all(), settings)


def start_error(student: Student, batch: Batch, params: Params | None = None) -> float:
    program = student.family.program(student.family.init(0) if params is None else params).detach()
    return float(rmse(sample(program, toy_mixture(), batch.noise), batch.end).mean())


def test_every_base_starts_on_every_grid_once_and_at_the_same_cost() -> None:
    field = list(entrants(student(), solved(4).reference))
    bases = {entrant.student.options.get("base") for entrant in field}
    assert field[0].label == "configured" and {"ipndm", "ipndm_v", "deis", "dpmpp", "unipc"} <= bases
    assert len({entrant.student.family for entrant in field}) == len(field) > 50
    assert {entrant.student.family.nfe for entrant in field} == {4}
    labels = [entrant.label for entrant in field]
    assert "ipndm 3 on quadratic" in labels and any(label.startswith("ipndm 3 on GITS") for label in labels)
    alone = [entrant.label for entrant in entrants(student(), None, starts=False)]
    assert 4 < len(alone) < 10 and all("ipndm" not in label and "GITS" not in label for label in alone)


@pytest.mark.parametrize(("lower_starts", "rounds"), [(True, 5), (False, 4)])
def test_the_rounds_are_told_as_they_end(lower_starts: bool, rounds: int) -> None:
    told = list[tuple[int, int, float]]()

    def tell(done: int, of: int, error: float) -> None:
        told.append((done, of, error))

    batch, settings = batch_of_all(), replace(SETTINGS, lower_starts=lower_starts)
    _, _, report = run_race(student(), toy_mixture(), batch, batch, settings, progress=tell)
    assert [said[:2] for said in told] == [(number, rounds) for number in range(1, rounds + 1)]
    assert told[-1][2] == report.rmse


def test_a_start_is_traced_twice_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for its cost, once for its table, which the rounds share."""
    traced, program = list[Trace](), Trace.program

    def counted(trace: Trace) -> SolverProgram:
        traced.append(trace)
        return program(trace)

    for name in ("epd", "gas", "corrected"):
        configured = student(name, 6)
        with monkeypatch.context() as patch:
            patch.setattr(Trace, "program", counted)
            field = list(entrants(configured))
            again = [entrant.program for entrant in field[1:]]
        assert 5 < len(again) and len(traced) <= 2 * len(again) + 2, name  # one grid is the configured one
        traced.clear()


@pytest.mark.parametrize(("name", "nfe"), [("epd", 3), ("gas", 4), ("bns", 4), ("corrected", 4)])
def test_the_winner_has_the_smallest_error_of_the_finalists_and_no_more_than_the_configured_start(
    name: str, nfe: int
) -> None:
    batch, configured = batch_of_all(), student(name, nfe)
    winner, params, report = raced(name, nfe)
    assert report.history[0].rmse == pytest.approx(start_error(configured, batch))
    assert report.rmse == pytest.approx(start_error(winner, batch, params)) and report.rmse <= report.history[0].rmse
    assert "won over" in report.note and winner.family.nfe == nfe
    assert winner.family.name == name


def test_drawn_params_race_against_the_quadrature_on_every_grid() -> None:
    field = list(entrants(student("epd", 6), seed=5))
    first, others = field[0].student.family, {entrant.student.family for entrant in field[1:]}
    assert field[0].label == "configured" and isinstance(first, EPD) and first.init_from == "drawn"
    assert len(others) > 5 and all(isinstance(other, EPD) and other.init_from == "quadrature" for other in others)
    assert all(entrant.label.startswith("quadrature on ") for entrant in field[1:])
    batch = solved(16)
    winner, params, report = run_race(student("epd", 6), toy_mixture(), batch)
    assert report.rmse < 0.3 * report.history[0].rmse and report.note.startswith("quadrature on ")
    assert torch.equal(params["r_params"], winner.family.init(1)["r_params"])


def test_rows_that_are_linear_race_after_least_squares() -> None:
    plain, _, before = raced("corrected", 4, replace(SETTINGS, least_squares=False))
    winner, params, after = raced("corrected", 4)
    assert "least squares" not in before.note and "+ least squares won over" in after.note
    assert after.rmse < 0.8 * before.rmse
    assert bool((params["correction_denoised"] != 0).any()) and bool((params["raw_dt"] == 0).all())
    alone = run_race(student("corrected", 4), toy_mixture(), batch_of_all())  # without trajectories nothing is fitted
    assert "least squares" not in alone[2].note and plain.family.nfe == winner.family.nfe == 4


def test_parallel_points_race_after_a_search_of_points() -> None:
    _, _, before = raced("epd", 6, RaceFit(least_squares=False), learn_times=True)
    winner, params, after = raced("epd", 6, RaceFit(), learn_times=True)
    assert "point search" not in before.note and "+ point search won over" in after.note
    assert after.rmse < 0.7 * before.rmse and after.history[0].rmse == before.history[0].rmse
    assert not torch.equal(params["r_params"], winner.family.init(0)["r_params"])
    assert bool((params["raw_dt"] == 0).all()) and bool((params["scale_time_params"] == 0).all())


def test_the_note_says_by_how_much_the_winner_won() -> None:
    winner, params, report = raced("corrected", 4)
    said = re.fullmatch(r"(.+) won over (\d+) others; on 64 samples (\S+), next (.+) with (\S+)", report.note)
    assert said is not None and said[1] != said[4] and float(said[3]) <= float(said[5])
    assert start_error(winner, batch_of_all(), params) == pytest.approx(float(said[3]), abs=1e-4)
    grids = len(list(entrants(student(), batch_of_all().reference, starts=False)))
    assert grids - 1 < int(said[2]) <= grids - 1 + 4 * 3 + 2  # the best four from three lower levels, the best from two


def test_a_configured_start_that_is_best_stays() -> None:
    batch = solved(16)
    configured = student("corrected", 4)
    program = configured.family.program(configured.family.init(0)).detach()
    batch = batch._replace(end=sample(program, toy_mixture(), batch.noise))
    winner, _, report = run_race(configured, toy_mixture(), batch)
    assert winner == configured and report.rmse == 0 and report.note.startswith("configured won")


def test_it_is_deterministic_and_counts_its_evaluations() -> None:
    batch, counted = solved(32), Counted(toy_mixture())
    settings = RaceFit(first=4, survivors=3, starts=False, lower_starts=False)
    first, _, report = run_race(student(), counted, batch, settings=settings)
    again, _, _ = run_race(student(), toy_mixture(), batch, settings=settings)
    assert first == again and counted.images == report.evaluations
    field = len(list(entrants(student(), starts=False)))
    assert counted.images == 4 * (4 * field + 16 * 3 + 32 * 2 + 32 * 2)  # the winner and the configured start on all
    for fitted in (student(), student("epd", 6, init_from="quadrature")):
        counted.images = 0
        _, _, report = run_race(fitted, counted, batch, batch, RaceFit(first=4, survivors=3))
        assert counted.images == report.evaluations


def test_fixed_levels_race_against_rules_between_their_own_ends() -> None:
    listed = Student.build("ld3", 3, [70.0, 2.0, 0.3, 0.01], "edm", {"base": "euler"})
    field = list(entrants(listed))
    assert len(field) > 3
    for entrant in field:
        assert (entrant.student.family.grid[0], entrant.student.family.grid[-1]) == pytest.approx((70.0, 0.01))


def test_a_flow_teacher_gets_the_shifted_grids() -> None:
    flow = Student.build("corrected", 4, Grid("flow_shift", start=1.0, end=0.01), "flow", {"base": "euler"})
    labels = [entrant.label for entrant in entrants(flow)]
    assert any("shift 3" in label for label in labels) and not any("time_uniform rho 3" in label for label in labels)


def test_searched_grids_of_a_reference_on_another_path_are_those_of_its_noise_levels() -> None:
    reference = solved(8).reference
    assert reference is not None
    teacher = toy_mixture()
    ends = teacher.noise_range_on(VP())
    other = Student.build("corrected", 4, Grid("polynomial", start=ends[0], end=ends[1]), "vp", {"base": "euler"})
    there = {one.label: one.student.family for one in entrants(other, reference, starts=False)}
    here = {one.label: one.student.family for one in entrants(student(), reference, starts=False)}
    for label in ("GITS gamma 1", "GITS gamma 1.15"):
        ratios = [float(VP().sigma(level) / VP().alpha(level)) for level in there[label].grid]
        assert ratios == pytest.approx(list(here[label].grid), rel=1e-6)
    winner, _, report = run_race(other, teacher, solved(32), solved(32))
    assert winner.family.path == VP() and report.rmse < 0.5 * report.history[0].rmse


def test_a_grid_without_reference_states_races_unfitted() -> None:
    batch = solved(32)
    above = Student.build("corrected", 4, Grid("polynomial", start=90.0, end=0.002), "edm", {})
    _, _, report = run_race(above, toy_mixture(), batch, batch)
    assert report.rmse < report.history[0].rmse and " from " in report.note


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="fit.race.survivors must be at least 1, not 0"):
        RaceFit(survivors=0)
    with pytest.raises(ValueError, match="cannot spend exactly nfe=7"):
        Student.build("epd", 7, Grid("polynomial"), "edm", {})
    assert families.build("euler", Grid("polynomial", 3)).starts() == ({},)


@pytest.mark.parametrize(("name", "nfe", "gain"), [("corrected", 4, 0.8), ("epd", 6, 1.0), ("bns", 4, 0.9)])
def test_a_student_that_takes_its_noise_for_a_state_further_down_ends_nearer(name: str, nfe: int, gain: float) -> None:
    above, _, before = raced(name, nfe, replace(SETTINGS, lower_starts=False))
    below, params, after = raced(name, nfe)
    assert after.rmse < gain * before.rmse and " from " in after.note and " from " not in before.note
    assert above.family.grid[0] == pytest.approx(80.0) and below.family.grid[0] < 40
    assert below.family.grid[-1] == pytest.approx(0.002) and below.family.nfe == nfe
    assert below.rule is not None and below.rule.start == below.family.grid[0]
    assert after.rmse == pytest.approx(start_error(below, batch_of_all(), params))


def test_lower_starts_are_named_by_their_noise_level_and_never_begin_above_the_configured_one() -> None:
    first = next(iter(entrants(student())))
    lower = list(from_lower(first, (1.0, 2.0), 80.0))
    assert [one.label for one in lower] == ["configured from 29.4", "configured from 10.8"]
    again = list(from_lower(lower[1], (-0.5, 0.5, -3.0), 80.0))
    assert [one.label for one in again] == ["configured from 17.9", "configured from 6.57"]  # -3 would begin above
    assert list(from_lower(first, (-1.0, 0.0, 30.0), 80.0)) == []  # above, the same, and nothing left of the grid
    listed = Student.build("ld3", 3, [80.0, 2.0, 0.3, 0.002], "edm", {"base": "euler"})
    assert list(from_lower(next(iter(entrants(listed))), (1.0,), 80.0)) == []


def test_a_flow_student_begins_lower_than_pure_noise() -> None:
    flow = Student.build("corrected", 4, Grid("flow_shift", start=1.0, end=0.01), "flow", {"base": "euler"})
    lower = list(from_lower(next(iter(entrants(flow))), (1.0,), 1.0))
    assert [one.label for one in lower] == ["configured from 29.4"]
    first = lower[0].student.family.grid[0]
    assert first / (1 - first) == pytest.approx(80 / math.e)
