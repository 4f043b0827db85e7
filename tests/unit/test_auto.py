"""`solver=auto`: several families race and descend, and the one that ends lowest is the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import solverdistill as sd
from solverdistill.families.learned.parallel import Parallel
from solverdistill.fits.placements import PlacementFit
from solverdistill.training.compose import compose
from solverdistill.training.config_files import find_configs
from solverdistill.training.configuration import Run

TARGETS = {"train_samples": 32, "validation_samples": 32, "test_samples": 8, "cache": None}
FIT = {"race": {"first": 2, "lower_starts": False}, "gauss_newton": {"iterations": 6, "samples": 16}}


def distilled(solver: Any = None, nfe: int | None = 4, **given: Any) -> sd.Distilled:
    return sd.distill("mixture", solver, nfe, **{"fit": FIT, "targets": TARGETS, "progress": False, **given})


def test_it_is_the_default_and_ends_as_the_best_of_its_families() -> None:
    done = distilled()
    race, descent = done.reports[1:]
    named = {name: distilled(name) for name in ("corrected", "bns", "gas")}
    assert done.family.name in named and done.family.nfe == 4
    assert race.rmse == min(one.reports[1].rmse for one in named.values())
    assert f"{done.family.name} went on" in descent.note and all(name in race.note for name in named)
    assert done.rmse <= 1.03 * min(one.rmse for one in named.values())
    of_race, of_descents = (sum(one.reports[i].evaluations for one in named.values()) for i in (1, 2))
    assert descent.evaluations < of_descents and race.evaluations <= of_race
    again = distilled("auto")
    assert again.family == done.family
    assert all(torch.equal(value, again.params[name]) for name, value in done.params.items())


def test_without_a_race_all_families_descend() -> None:
    done = distilled(fit={"gauss_newton": FIT["gauss_newton"]})
    assert "went on" in done.reports[-1].note and done.family.name in ("corrected", "bns", "gas")


def test_a_family_that_cannot_have_the_cost_is_left_out() -> None:
    done = distilled({"name": "auto", "among": ["dode_edm", "bns"]}, 3, fit={"race": None})
    assert done.family.name == "bns"
    with pytest.raises(ValueError, match="dode_edm"):
        distilled({"name": "auto", "among": ["dode_edm"]}, 3)


def test_a_setting_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="solver=auto has no setting 'order'; it has: nfe, depth, grid, path, among"):
        distilled({"name": "auto", "order": 3})


@pytest.mark.parametrize("among", [[], "bns", [1], None])
def test_families_are_a_list_of_names(among: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="solver.among is a list of families"):
        distilled({"name": "auto", "among": among})


def test_a_fit_that_does_not_choose_among_families_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fit=\[least_squares\] does not choose among .*corrected, bns, gas"):
        distilled(fit="least_squares")


def test_by_depth_points_beside_the_evaluations_come_last() -> None:
    short = {**FIT, "placements": {"placements": 3, "iterations": 3, "final_iterations": 6, "samples": 32, "points": 2}}
    done = distilled({"name": "auto", "depth": 2}, None, fit=short)
    *_, before, placed = done.reports
    assert placed.fit == "placements" and done.rmse == placed.rmse <= before.rmse
    assert isinstance(done.family, Parallel) and (done.family.nfe, done.family.depth) == (4, 2)


def test_a_depth_brings_the_fit_of_points_and_more_held_out_samples_unless_they_are_asked_for() -> None:
    def run(**changed: Any) -> Run:
        config = compose(find_configs(), {"model": "mixture", "solver": "auto"})
        config["solver"] |= {"depth": 3, **changed.pop("solver", {})}
        config["targets"] |= changed
        return Run.of(config)

    by_depth = run()
    assert list(by_depth.fits) == ["race", "gauss_newton", "placements"]
    assert by_depth.fits["placements"] == PlacementFit(points=2) and by_depth.targets.validation_samples == 512
    assert run(validation_samples=32).targets.validation_samples == 32
    assert list(run(solver={"points": 1}).fits) == ["race", "gauss_newton"]
    with pytest.raises(ValueError, match="both say what a sample costs"):
        run(solver={"nfe": 3})


def test_a_file_to_begin_at_takes_the_place_of_the_default_and_not_of_a_choice(tmp_path: Path) -> None:
    path = distilled("bns", fit={"race": None}).save(tmp_path / "bns.json")
    assert distilled(nfe=None, start=path, fit={"gauss_newton": {"iterations": 1}}).family.name == "bns"
    with pytest.raises(ValueError, match="solver=auto was asked for"):
        distilled("auto", nfe=None, start=path)


def test_points_are_placed_beside_any_sequential_student_and_no_other() -> None:
    fit = {"placements": {"placements": 1, "iterations": 1, "final_iterations": 1, "samples": 16, "points": 2}}
    done = distilled("bns", 2, fit=fit)
    assert done.reports[-1].fit == "placements"
    with pytest.raises(ValueError, match="epd has evaluations side by side already"):
        distilled("epd", 5, fit=fit)
    with pytest.raises(ValueError, match="is for a sequential student; set solver.points"):
        distilled("parallel", None, fit=fit)
