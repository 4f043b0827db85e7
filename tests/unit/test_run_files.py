"""What a run writes while and after it fits: fits.csv and the training log."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from solverdistill.denoisers.wrappers import Counted
from solverdistill.fits.report import FitReport, Meter
from solverdistill.fits.spending import Spending
from solverdistill.teachers.mixture import toy_mixture
from solverdistill.training.exporting import write_reports
from solverdistill.training.recording import make_loggers


def lines_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_references_and_both_passes_have_columns_of_their_own(tmp_path: Path) -> None:
    targets, meter = Meter(), Meter()
    targets.add("teacher", 26_240, 3.5)
    history = [meter.point(0.5)]
    meter.add("teacher", 10, 0.25)
    meter.add("forward", 200, 1.5)
    history.append(meter.point(0.2))
    meter.add("backward", 300, 2.5)
    history.append(meter.point(0.1))
    reports = [FitReport.of("targets", [], targets, "all made"), FitReport.of("race", history, meter, "done")]
    write_reports(tmp_path / "fits.csv", reports)
    lines = lines_of(tmp_path / "fits.csv")
    assert list(lines[0])[:4] == ["fit", "rmse", "evaluations", "seconds"]
    assert [line["fit"] for line in lines] == ["race"] * 3 and [line["rmse"] for line in lines] == ["0.5", "0.2", "0.1"]
    expected: dict[str, list[float]] = {
        "evaluations": [0, 210, 510],
        "teacher_evaluations": [26_240, 26_250, 26_250],
        "teacher_seconds": [3.5, 3.75, 3.75],
        "forward_evaluations": [0, 200, 200],
        "forward_seconds": [0, 1.5, 1.5],
        "backward_evaluations": [0, 0, 300],
        "backward_seconds": [0, 0, 2.5],
    }
    assert {name: [float(line[name]) for line in lines] for name in expected} == expected


@pytest.mark.parametrize("split", [True, False])
def test_a_killed_run_keeps_what_it_spent_by_kind(split: bool) -> None:
    spending = Spending(Counted(toy_mixture()))
    spending.meter.add("forward", 7, 0.5)
    spending.point(0.3)
    state = spending.state_dict()
    if not split:  # written before kinds were told apart
        state["history"] = [point[:3] for point in state["history"]]
    resumed = Spending(Counted(toy_mixture()))
    resumed.load_state_dict(state)
    assert resumed.history[0][:3] == spending.history[0][:3]
    assert resumed.history[0].spent == (spending.history[0].spent if split else ())


def test_wandb_is_not_passed_what_it_warns_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    passed = dict[str, Any]()
    monkeypatch.setattr(wandb, "init", passed.update)
    _, logger = make_loggers({"wandb": "offline", "project": "mine"}, "a-run", tmp_path, {"seed": 0})
    assert logger.experiment is None  # pyright: ignore[reportAttributeAccessIssue]
    assert "anonymous" not in passed
    assert passed["project"] == "mine" and passed["name"] == "a-run" and passed["config"] == {"seed": 0}
