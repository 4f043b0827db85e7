"""The search for parallel points: never worse than the sequential solver, deterministic, and what it refuses."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import solverdistill as sd
from solverdistill.families import build_for_depth
from solverdistill.families.learned.corrected import Corrected
from solverdistill.families.learned.parallel import Parallel
from solverdistill.fits.placements import PlacementFit
from solverdistill.noise.grids import Grid
from solverdistill.training.stages import Watcher

TARGETS = {"train_samples": 64, "validation_samples": 64, "test_samples": 16, "cache": None}
SHORT = {"placements": 3, "iterations": 3, "final_iterations": 6, "samples": 32}


def search(fit: dict[str, Any], **solver: Any) -> sd.Distilled:
    settings = {"name": "parallel", "depth": 2, **solver}
    return sd.distill("mixture", settings, fit={"placements": fit}, targets=TARGETS, progress=False)


def test_it_ends_below_the_sequential_solver_of_the_same_depth() -> None:
    done = search(SHORT)
    *_, sequential, placed = done.reports
    assert [report.fit for report in done.reports] == ["targets", "race", "gauss_newton", "placements"]
    assert isinstance(done.family, Parallel) and (done.family.nfe, done.family.depth) == (4, 2)
    assert done.rmse == placed.rmse < sequential.rmse == placed.history[0].rmse
    assert "best of 3 placements" in placed.note and "beside corrected with nfe 2" in placed.note
    again = search(SHORT)
    assert again.family == done.family
    assert all(torch.equal(value, again.params[name]) for name, value in done.params.items())


def test_where_nothing_is_better_the_sequential_solver_is_what_comes_out() -> None:
    done = search({**SHORT, "placements": 1, "iterations": 1, "final_iterations": 1}, depth=4, points=3)
    sequential = next(report for report in done.reports if report.fit == "gauss_newton")
    assert isinstance(done.family, Corrected) and done.family.nfe == 4 and done.rmse == sequential.rmse
    assert math.isfinite(done.reports[-1].rmse)


def test_a_start_counts_among_the_steps_that_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fit = search(SHORT).save(tmp_path / "solver.json"), {**SHORT, "placements": 1, "finalists": 3}
    seen: list[tuple[int, int]] = []
    shows = nullcontext(lambda done, of, error: seen.append((done, of)))
    monkeypatch.setattr(Watcher, "fitting", lambda self, name, fit: shows)
    sd.distill("mixture", "parallel", start=path, fit={"placements": fit}, targets=TARGETS, progress=False)
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_other_fits_can_work_on_points() -> None:
    fit = {"race": {"lower_starts": False}, "gauss_newton": {"iterations": 2}}
    done = sd.distill("mixture", {"name": "parallel", "depth": 2}, fit=fit, targets=TARGETS, progress=False)
    assert isinstance(done.family, Parallel) and done.rmse <= done.reports[1].history[0].rmse


def test_a_depth_is_met_exactly_or_refused() -> None:
    rule = Grid("polynomial")
    assert build_for_depth("parallel", 3, rule, points=4).nfe == 12
    assert build_for_depth("epd", 5, rule, afs=True).nfe == 8
    with pytest.raises(ValueError, match="heun cannot have a depth of exactly 3; the nearest it can reach: 2 and 4"):
        build_for_depth("heun", 3, rule)
    with pytest.raises(ValueError, match="solver.nfe=4 and solver.depth=2 both say what a sample costs"):
        sd.distill("mixture", {"name": "parallel", "depth": 2}, nfe=4, targets=TARGETS)
    with pytest.raises(TypeError, match="solver.depth must be an integer of at least 1, not 'two'"):
        sd.distill("mixture", {"name": "parallel", "depth": "two"}, targets=TARGETS)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="fit=placements finds where the points of parallel belong; gas has none"):
        sd.distill("mixture", "gas", fit="placements", targets=TARGETS)
    with pytest.raises(ValueError, match="fit.placements.finalists must be at least 1, not 0"):
        PlacementFit(finalists=0)
