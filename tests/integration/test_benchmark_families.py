"""scripts/benchmark.py families with a tiny budget: its table, its records, stopped and resumed."""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.benchmark import parse
from scripts.benchmarks import families
from scripts.benchmarks.families_figure import draw
from scripts.benchmarks.families_report import TITLES, report, starts
from scripts.benchmarks.fits import run_here
from scripts.benchmarks.records import CLASSICAL, Record, read_records, write_records
from scripts.benchmarks.setting import Job

ROOT = Path(__file__).parents[2]
BUDGET = 64
TINY = ["--model", "mixture", "--nfe", "4", "--evaluations", str(BUDGET), "--test-samples", "8"]
FEW = ["targets.train_samples=8", "targets.validation_samples=4"]
SMALL = [*FEW, "fit=gradient", "fit.gradient.validations=1", "fit.gradient.batch_size=4"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache of its own, for child processes too, which find the package in this checkout."""
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def run(folder: Path, *arguments: str) -> None:
    families.run(parse(["families", *TINY, "--out", str(folder / "families.md"), "--set", *SMALL, *arguments]))


def lines_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(folder / "families.csv", encoding="utf-8", newline="") as stream:
        return {(line["kind"], line["solver"]): line for line in csv.DictReader(stream)}


@pytest.mark.slow
def test_two_students_are_compared_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_job = families.run_job
    # One of the three has a process of its own, as all do outside of tests.
    monkeypatch.setattr(families, "run_job", lambda job: (run_job if job.solver == "gas" else run_here)(job))
    run(tmp_path, "--solvers", "gas", "epd")
    said = capfd.readouterr().out
    assert "3 of 3 to do" in said and "[3/3] epd nfe 2: RMSE" in said
    done = lines_of(tmp_path)
    gas, epd = done["student", "gas"], done["student", "epd"]
    assert (gas["nfe"], epd["nfe"], epd["depth"]) == ("4", "2", "1")
    assert gas["backward_evaluations"] == epd["backward_evaluations"] == str(BUDGET // 2)
    looks = 2 * 4  # validations, before the first step and after the last, of 4 samples
    assert gas["forward_evaluations"] == str(BUDGET // 2 + looks * 4)
    assert epd["forward_evaluations"] == str(BUDGET // 2 + looks * 2)
    assert gas["fits"] == epd["fits"] == "gradient"
    assert gas["teacher_evaluations"] == str(41 * 12)
    assert float(gas["megabytes"]) > 50 and int(gas["params"]) > 0 and float(gas["seconds"]) > 0
    page = (tmp_path / "families.md").read_text(encoding="utf-8")
    assert "| " + " | ".join(TITLES) + " |" in page and "| `gas` | 4 | 4 |" in page
    assert "| best classical: " in page and "DPM++(3M) polynomial (start of gas)" in page
    assert "`epd` runs at nfe 2, the nearest that it can spend below 4." in page
    assert (tmp_path / "families.png").read_bytes().startswith(b"\x89PNG")

    kept = [line for line in (tmp_path / "families.csv").read_text().split("\n") if ",epd,2," not in line]
    (tmp_path / "families.csv").write_text("\n".join(kept))
    asked: list[Job] = []

    def stub(job: Job) -> list[Record]:
        asked.append(job)
        return [replace(STUDENT, solver=job.solver, nfe=job.nfe, settings=job.settings)]

    monkeypatch.setattr(families, "run_job", stub)
    run(tmp_path, "--solvers", "gas", "epd")
    assert "1 of 3 to do (2 done before)" in capfd.readouterr().out
    assert [(job.solver, job.nfe) for job in asked] == [("epd", 2)]
    again = lines_of(tmp_path)
    assert again["student", "gas"] == gas and again["student", "epd"]["rmse_mean"] == str(STUDENT.rmse_mean)


@pytest.mark.slow
def test_a_mistake_in_a_process_is_told_in_a_sentence() -> None:
    failing = replace(families.job_of(parse(["families", *TINY]), "gas", 4), overrides=["fit.race.first=0"])
    said = families.run_job(failing)
    assert isinstance(said, str) and "error: " in said and "fit.race.first must be at least 1, not 0" in said


def test_the_others_go_on_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stub(job: Job) -> list[Record] | str:
        return "no" if job.solver == "gas" else [replace(EULER, settings=job.settings)]

    monkeypatch.setattr(families, "run_job", stub)
    with pytest.raises(SystemExit, match="1 of 2 failed"):
        run(tmp_path, "--solvers", "gas")
    assert "gas nfe 4 failed:\nno" in capfd.readouterr().err
    assert {kind for kind, _ in lines_of(tmp_path)} == {CLASSICAL}
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "fit.gradient.gradient_clip=1.0", "--solvers", "gas")
    said = capfd.readouterr().err
    assert said.startswith("error: families.csv was made with other settings") and "--fresh" in said


@pytest.mark.parametrize("text", ["0", "-1", "four"])
def test_costs_are_positive_numbers(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["families", "--nfe", text])
    assert "is not a number of at least 1" in capfd.readouterr().err


STUDENT = Record("s", "student", "gas", 4, 4, 0.02, 0.01, 0.05, 1.0, 0.04, 0.03, 0.08, 2.0, seconds=3.0, megabytes=900)
EULER = Record("s", CLASSICAL, "Euler polynomial", 4, 4, 0.04, 0.03, 0.08, 2.0)
BEST = Record("s", CLASSICAL, "iPNDM-3 quadratic", 4, 4, 0.03, 0.02, 0.07, 1.5)


def page_of(*records: Record) -> str:
    arguments = argparse.Namespace(model="mixture", evaluations=40, test_samples=8, jobs=1, out=Path("families.md"))
    return report(records, {4: {"gas": 4}}, arguments)


def test_the_table_is_sorted_and_its_best_is_bold() -> None:
    table = [line for line in page_of(EULER, BEST, STUDENT).split("\n") if line.startswith("| ")][1:]
    assert [line.split(" | ")[0] for line in table] == [
        "| `gas`",
        "| best classical: iPNDM-3 quadratic",
        "| Euler polynomial (start of gas)",
    ]
    assert "| 0.0400 → **0.0200** | 0.0300 → **0.0100** | **1.00** |" in table[0] and "**" not in table[1] + table[2]


@pytest.mark.parametrize("error", [0.0401, float("nan")])
def test_a_student_worse_than_its_start_is_marked(error: float) -> None:
    assert "Worse than their own start on the test samples: none." in page_of(STUDENT, EULER)
    page = page_of(replace(STUDENT, rmse_mean=error), EULER)
    assert "**worse than its start**" in page
    assert "Worse than their own start on the test samples: `gas` at nfe 4." in page


def test_a_start_is_recognised_by_its_errors() -> None:
    assert starts(STUDENT, [BEST, EULER]) is EULER
    assert starts(STUDENT, [BEST, replace(EULER, nfe=6)]) is None
    assert starts(replace(STUDENT, initial_p95=0.09), [EULER]) is None


def test_records_survive_the_file_exactly(tmp_path: Path) -> None:
    records = [replace(STUDENT, rmse_mean=0.1 + 0.2, frechet=None), EULER]
    write_records(tmp_path / "a.csv", records)
    assert read_records(tmp_path / "a.csv", "s") == records and read_records(tmp_path / "b.csv", "s") == []
    with pytest.raises(ValueError, match="a.csv was made with other settings"):
        read_records(tmp_path / "a.csv", "t")


def test_the_figure_is_drawn_from_any_number_of_lines(tmp_path: Path) -> None:
    for count in range(4):
        draw(tmp_path / f"{count}.png", [STUDENT, EULER, BEST][:count])
        assert (tmp_path / f"{count}.png").read_bytes().startswith(b"\x89PNG")
