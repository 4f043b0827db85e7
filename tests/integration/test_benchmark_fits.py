"""scripts/benchmark.py fits with a tiny budget: its runs, stopped and resumed; its table, its verdict, its figure."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.benchmark import parse
from scripts.benchmarks import fits
from scripts.benchmarks.fits import FitRun, write_runs
from scripts.benchmarks.fits_figure import draw
from scripts.benchmarks.fits_report import MEMORY, TITLES, curve, first_below, report
from scripts.benchmarks.recipes import LONG, RECIPES, recipes_of
from scripts.benchmarks.records import CLASSICAL, Record
from scripts.benchmarks.setting import Job, Setting, with_budget
from solverdistill.fits.gradient.fit import GradientFit

ROOT = Path(__file__).parents[2]
FEW = ["targets.train_samples=8", "targets.validation_samples=4"]
TINY = ["--model", "mixture", "--nfe", "4", "--evaluations", "64", "--test-samples", "8"]
PAPER = [["gradient", 0.08, 0, 0.1], ["gradient", 0.02, 500, 2.0], ["gradient", 0.01, 1000, 4.0]]
RACE = [["race", 0.06, 10, 0.5], ["race", 0.03, 40, 1.0]]
STAGES = [*RACE, ["gauss_newton", 0.03, 16, 0.1], ["gauss_newton", 0.01, 60, 2.0]]
COSTS: dict[str, Any] = {"forward_evaluations": 800, "backward_evaluations": 200, "seconds": 3.0}
STUDENT = Record("s", "student", "gas", 4, 4, 0.02, 0.01, 0.05, **COSTS, history=STAGES)
EULER = Record("s", CLASSICAL, "Euler polynomial", 4, 4, 0.04, 0.03, 0.08)
BEST = Record("s", CLASSICAL, "iPNDM-3 quadratic", 4, 4, 0.03, 0.02, 0.07)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, for child processes too, which find the package in this checkout."""
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def arguments_of(folder: Path, *arguments: str) -> argparse.Namespace:
    return parse(["fits", *TINY, "--out", str(folder / "fits.md"), "--set", *FEW, *arguments])


def one(recipe: str, record: Record, seed: int = 0, **values: Any) -> FitRun:
    return FitRun(recipe, Job(record.solver, record.nfe, "mixture", 64, 8, seed), replace(record, **values))


def classical(record: Record) -> FitRun:
    return FitRun(CLASSICAL, Job(CLASSICAL, record.nfe, "mixture", 64, 8), record)


def page_of(*runs: FitRun) -> str:
    settings = {
        "model": "mixture",
        "evaluations": 64,
        "test_samples": 8,
        "seeds": 2,
        "jobs": 1,
        "solvers": ["gas"],
        "device": "cpu",
    }
    return report(runs, argparse.Namespace(**settings, out=Path("fits.md")))


@pytest.mark.slow
def test_two_fits_are_compared_and_done_ones_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fits, "run_job", fits.run_here)  # its process is that of the families' benchmark, tested there
    asked = ["--solvers", "gas", "--seeds", "1", "--recipes", "adam", "least_squares"]
    fits.run(arguments_of(tmp_path, *asked))
    said = capfd.readouterr().out
    assert "3 of 3 to do" in said and "least_squares gas nfe 4 seed 0: RMSE" in said
    runs = FitRun.read(tmp_path / "fits.json")
    assert {run.recipe for run in runs} == {CLASSICAL, "adam", "least_squares"}
    adam, squares = (next(r.record for r in runs if r.recipe == name) for name in ("adam", "least_squares"))
    assert (adam.fits, squares.fits) == ("gradient", "race+least_squares")
    assert adam.backward_evaluations > 0 == squares.backward_evaluations
    assert {point[0] for point in squares.history} == {"race", "least_squares"}
    assert squares.initial_mean is not None and squares.rmse_mean < squares.initial_mean
    page = (tmp_path / "fits.md").read_text(encoding="utf-8")
    assert "## gas, nfe 4" in page and "| Adam, cosine | " in page and "| best classical: " in page
    assert (tmp_path / "fits.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(fits, "run_job", lambda job: pytest.fail(f"{job} was done before"))
    fits.run(arguments_of(tmp_path, *asked))
    assert "0 of 3 to do" in capfd.readouterr().out
    assert FitRun.read(tmp_path / "fits.json") == runs
    assert (tmp_path / "fits.md").read_text(encoding="utf-8").split("- Command")[0] == page.split("- Command")[0]


def test_on_another_device_all_runs_share_this_process_and_memory_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fits, "run_job", lambda job: pytest.fail("a process of its own"))
    asked = ["--solvers", "gas", "--seeds", "1", "--recipes", "least_squares", "--device", "cpu:0"]
    fits.run(arguments_of(tmp_path, *asked))
    assert "failed" not in capfd.readouterr().out
    student = next(run for run in FitRun.read(tmp_path / "fits.json") if run.recipe == "least_squares")
    assert student.job.device == "cpu:0" and student.record.fits == "race+least_squares"
    page = (tmp_path / "fits.md").read_text(encoding="utf-8")
    assert f"| seconds | {MEMORY} |" in page and "processes at a time" not in page
    rows = [line for line in page.split("\n") if line.startswith(("| race, least squares", "| best classical"))]
    assert [row.count("|") for row in rows] == [len(TITLES) + 2] * 2 and all("0.0 |" not in row[-8:] for row in rows)

    monkeypatch.setattr(fits, "measure", lambda job: 1 / 0)
    fits.run(arguments_of(tmp_path, *asked, "--fresh"))
    assert "least_squares gas nfe 4 failed:\nZeroDivisionError: division by zero" in capfd.readouterr().out


def test_what_failed_is_told_and_repeated_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs: list[Job] = []

    def stub(job: Job) -> list[Record] | str:
        jobs.append(job)
        return "no" if job.solver == "gas" and len(jobs) < 4 else [replace(STUDENT, solver=job.solver, history=PAPER)]

    monkeypatch.setattr(fits, "run_job", stub)
    monkeypatch.setattr(fits, "make_reference", lambda job: None)
    asked = ["--solvers", "gas", "--seeds", "2", "--recipes", "adam"]
    fits.run(arguments_of(tmp_path, *asked))
    assert "adam gas nfe 4 failed:\nno" in capfd.readouterr().out
    fits.run(arguments_of(tmp_path, *asked))
    assert "2 of 3 to do" in capfd.readouterr().out
    assert [(job.solver, job.seed) for job in jobs[3:]] == [("gas", 0), ("gas", 1)]
    fits.run(arguments_of(tmp_path, *asked, "--fresh"))
    assert "3 of 3 to do" in capfd.readouterr().out
    with pytest.raises(FileNotFoundError, match="folder .*absent of --out does not exist"):
        fits.run(arguments_of(tmp_path / "absent", *asked))


def test_a_paper_s_recipe_runs_once_and_longer(tmp_path: Path) -> None:
    arguments = arguments_of(tmp_path, "--solvers", "gas", "epd", "--nfe-epd", "5", "8", "--seeds", "2")
    arguments.nfe_of = {"epd": arguments.nfe_epd}
    planned = fits.plan(arguments)
    assert planned[0] == (CLASSICAL, Job(CLASSICAL, 4, "mixture", 64, 8, 0, FEW))
    papers = [(job.solver, job.nfe, job.seed, job.evaluations) for name, job in planned if name.startswith("paper")]
    assert papers == [("gas", 4, 0, LONG * 64), ("epd", 5, 0, LONG * 64), ("epd", 8, 0, LONG * 64)]
    default = [(job.solver, job.nfe, job.seed, job.evaluations) for name, job in planned if name == "default"]
    assert default == [(solver, nfe, s, 64) for s in (0, 1) for solver, nfe in (("gas", 4), ("epd", 5), ("epd", 8))]
    assert len({json.dumps(asdict(job)) for _, job in planned}) == len(planned)


@pytest.mark.parametrize("solver", ["corrected", "gas", "epd"])
def test_every_recipe_of_every_student_is_a_run(solver: str) -> None:
    for name, recipe in recipes_of(solver).items():
        setting = Setting.of(Job(solver, 5, "mixture", 6400, 8, 0, [*recipe.overrides, *FEW]))
        family = setting.student(5).family
        assert family.nfe == 5, name
        for fit in setting.run.fits.values():
            if isinstance(fit, GradientFit):
                steps = with_budget(fit, 6400, 5).iterations
                assert abs(2 * 5 * fit.batch_size * steps - 6400) <= 5 * fit.batch_size, name


def test_recipes_differ_and_belong_to_their_students() -> None:
    assert len({recipe.overrides for recipe in RECIPES.values()}) == len({r.title for r in RECIPES.values()}) + 1
    assert "paper_gs" in recipes_of("gas") and "paper_gs" not in recipes_of("epd")
    assert "least_squares" not in recipes_of("epd") and "point_search" in recipes_of("epd")


def test_a_curve_adds_up_the_fits_before() -> None:
    assert curve([]) == []
    assert curve(STAGES) == [(0.06, 10, 0.5), (0.03, 40, 1.0), (0.03, 56, 1.1), (0.01, 100, 3.0)]
    assert first_below(STAGES, 0.03) == 40 and first_below(STAGES, 0.02) == 100 and first_below(STAGES, 0.001) is None


def test_the_table_is_sorted_and_averages_over_the_seeds() -> None:
    runs = [one("default", STUDENT, 0), one("default", STUDENT, 1, rmse_mean=0.01, forward_evaluations=1000)]
    runs += [one("adam", STUDENT, rmse_mean=0.035), classical(EULER), classical(BEST)]
    table = [line[2:-2].split(" | ") for line in page_of(*runs).split("\n") if line.startswith("| ")]
    assert table[0] == list(TITLES)
    default = "race, Gauss-Newton"
    assert table[1] == [default, "0.0150", "0.0100", "0.0500", "0.0100 to 0.0200 (2)", "1,100", "3"]
    assert table[2] == ["best classical: iPNDM-3 quadratic", "0.0300", "0.0200", "0.0700", "-", "-", "-"]
    assert table[3] == ["Adam, cosine", "0.0350", "0.0100", "0.0500", "-", "1,000", "3"]
    assert len(table) == 4


def test_the_verdict_says_when_the_default_has_reached_the_paper() -> None:
    default = one("default", STUDENT)
    paper = one("paper_gs", STUDENT, history=PAPER)
    page = page_of(default, paper)
    said = "The paper's recipe ends at a held-out error of 0.0100 after 1,000 evaluations; the default is as low"
    assert f"{said} after 100, 10% of them (seed 0)." in page
    assert f"| the paper's gradient recipe, {LONG} x the budget |" in page
    assert f"{said} never (seed 0)." in page_of(one("default", STUDENT, history=STAGES[:3]), paper)
    both = page_of(default, paper, one("adam", STUDENT, history=PAPER))
    assert said in both and "Adam ends at a held-out error of 0.0100" in both
    assert "the default is" not in page_of(default) and "the default is" not in page_of(paper)
    assert "the default is" not in page_of(one("default", STUDENT, 1), paper)


def test_runs_survive_the_file_exactly(tmp_path: Path) -> None:
    runs = [one("default", STUDENT, rmse_mean=0.1 + 0.2), classical(EULER)]
    write_runs(tmp_path / "a.json", runs)
    assert FitRun.read(tmp_path / "a.json") == runs and FitRun.read(tmp_path / "b.json") == []


def test_the_figure_is_drawn_from_any_number_of_runs(tmp_path: Path) -> None:
    runs = [one(name, STUDENT, history=PAPER) for name in RECIPES] + [one("default", STUDENT, 1), classical(EULER)]
    runs += [one("default", replace(STUDENT, nfe=6))]
    for count in (0, 1, len(runs)):
        draw(tmp_path / f"{count}.png", runs[:count])
        assert (tmp_path / f"{count}.png").read_bytes().startswith(b"\x89PNG")
