"""Runs that begin at a solver file: what they begin as, what they refuse, and that they never end worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import solverdistill as sd
from solverdistill.families import build_for_depth, build_for_nfe
from solverdistill.families.learned.parallel import Parallel
from solverdistill.families.learned.table import Table
from solverdistill.families.student import Student
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.programs.solver_file import save_solver
from solverdistill.teachers.mixture import toy_mixture
from solverdistill.training.config_files import find_configs
from solverdistill.training.run import student_of_checkpoint, train
from solverdistill.training.starting import asked_for, read_start
from solverdistill.zoo import names

TARGETS = {"train_samples": 32, "validation_samples": 32, "test_samples": 16, "cache": None}
FIT = {"race": {"lower_starts": False, "gits": False}, "gauss_newton": {"iterations": 3, "starts": 4}}
FEW = {"placements": 2, "iterations": 2, "final_iterations": 2}


def distil(**given: Any) -> sd.Distilled:
    return sd.distill("mixture", **{"fit": FIT, "targets": TARGETS, "progress": False, **given})


def error(file: Path | str, done: sd.Distilled) -> float:
    """Of a solver file, on the held-out samples of a run."""
    batch = done.data.split("validation").batch
    return float(rmse(sample(sd.load_solver(file), done.run.denoiser, batch.noise), batch.end).mean())


@pytest.fixture(scope="module")
def gas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distil(solver="gas", nfe=4).save(tmp_path_factory.mktemp("gas") / "gas.json")


def test_it_goes_on_from_the_params_of_a_file_and_ends_no_worse(gas: Path) -> None:
    done = distil(start=gas)
    assert done.family == read_start(gas, {}, toy_mixture()).student.family and done.family.name == "gas"
    race, newton = done.reports[1:]
    assert race.history[0].rmse == pytest.approx(error(gas, done), rel=1e-5)
    assert race.note.startswith(("start won over", "start + least squares won over")) and "went on" not in newton.note
    assert done.rmse == newton.rmse <= race.history[0].rmse
    assert torch.equal(distil(start=gas, solver="gas", nfe=4).program.B, done.program.B)


def test_a_table_begins_at_any_file_and_is_a_file_again(gas: Path, tmp_path: Path) -> None:
    done = distil(start=gas, solver="table")
    assert isinstance(done.family, Table) and done.family.nfe == 4
    assert done.rmse < error(gas, done)
    again = distil(start=done.save(tmp_path / "table.json"))
    assert again.family == done.family and again.rmse <= done.rmse


def test_points_are_put_beside_the_solver_of_a_file(gas: Path) -> None:
    settings = {"name": "parallel", "points": 3}
    done = distil(start=gas, solver=settings, fit={"placements": {**FEW, "placements": 1}})
    assert isinstance(done.family, Parallel) and done.family.depth == 4
    assert done.rmse <= error(gas, done) * (1 + 1e-6)


def test_solvers_of_the_zoo_begin_as_their_family_or_without_params_as_a_table() -> None:
    begun = {name: read_start(f"zoo:{name}", {}, toy_mixture()).student.family.name for name in names()[::5]}
    assert {family for name, family in begun.items() if "dyweight" in name} == {"dyweight"}
    done = distil(start="zoo:ays-sd15-nfe10", fit="gauss_newton")
    assert done.family.name == "table" and done.family.nfe == 10
    assert done.rmse < error("zoo:ays-sd15-nfe10", done)


def test_a_file_imports_nothing(tmp_path: Path, gas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(gas.read_text())
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    document["family"] = {**document["family"], "name": "planted.Solver"}
    (tmp_path / "s.json").write_text(json.dumps(document))
    assert read_start(tmp_path / "s.json", {}, toy_mixture()).student.family.name == "table"
    bare = save_solver(tmp_path / "bare.json", sd.load_solver(gas))
    family = read_start(bare, {}, toy_mixture()).student.family
    assert family.name == "table" and family.path == toy_mixture().path


def test_params_that_do_not_give_the_table_of_their_file_are_not_begun_at(tmp_path: Path, gas: Path) -> None:
    document = json.loads(gas.read_text())
    document["family"]["params"]["mu_logit"][0] += 0.1
    (tmp_path / "s.json").write_text(json.dumps(document))
    start = read_start(tmp_path / "s.json", {}, toy_mixture())
    assert start.student.family.name == "table" and start.params is None
    with pytest.raises(ValueError, match="cannot be begun at as gas: its params do not give its table"):
        read_start(tmp_path / "s.json", {"name": "gas"}, toy_mixture())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"solver": "bns"}, "holds a solver of the family 'gas' and solver=bns was asked for; .* solver=table"),
        ({"nfe": 5}, "solver.nfe=5 was asked for and start=.*gas.json begins as gas with nfe=4; leave one of them out"),
        ({"solver": {"name": "gas", "order": 1}}, "solver.order=1 was asked for and .* with order=None"),
        ({"solver": {"path": "vp"}}, "solver.path=vp was asked for and start=.* begins as gas with path="),
        ({"solver": {"grid": {"rho": 5.0}}}, "begins as gas with a grid of its own"),
    ],
)
def test_what_does_not_go_with_the_file_is_refused(gas: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distil(start=gas, **asked)


def test_a_family_on_its_grid_and_a_file_are_refused(gas: Path) -> None:
    with pytest.raises(ValueError, match="solver=gas is a family on its grid and start=.* brings its own; give one"):
        distil(start=gas, solver=read_start(gas, {}, toy_mixture()).student.family)
    with pytest.raises(ValueError, match="missing.json cannot be read"):
        distil(start="missing.json")


def test_the_command_line_begins_at_a_file_too(gas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # that of a test before this one
    own = [f"targets.{name}={'null' if value is None else value}" for name, value in TARGETS.items()]
    quiet = ["logger=csv", "trainer=cpu", "trainer.enable_progress_bar=false", "evaluation=off", "run_name=test"]
    fits = ["fit.race.lower_starts=false", "fit.race.gits=false", "fit.gauss_newton.iterations=3"]
    with initialize_config_dir(str(find_configs()), version_base="1.3"):
        given = [*own, *quiet, *fits, "model=mixture", f"start={gas}", f"output_dir={tmp_path}"]
        config: Any = OmegaConf.to_container(compose("train", overrides=given))
    train(config)
    file, done = sd.read_solver(tmp_path / "solver.json"), distil(start=gas)
    assert file.family["name"] == "gas" and torch.allclose(file.program.B, done.program.B)
    assert file.provenance["config_digest"]


def test_a_run_says_that_its_gradient_descent_is_set_for_another_solver(
    gas: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = {"gradient": {"iterations": 1, "batch_size": 4, "validations": 1}}
    distil(start=gas, fit=few, solver="gas")
    distil(start=gas, fit="race")
    assert "objective and optimizer" not in caplog.text
    distil(start=gas, fit=few)
    assert "begins as gas, and objective and optimizer are the defaults of auto; say solver=gas for" in caplog.text


def test_a_run_goes_on_from_no_checkpoint_of_another_solver(tmp_path: Path) -> None:
    asked, rule = Student.build("gas", 4, sd.Grid("polynomial"), "edm", {}), sd.Grid("polynomial")
    path = tmp_path / "last.ckpt"

    def stored(name: str, **cost: int) -> None:
        build = build_for_nfe if "nfe" in cost else build_for_depth
        torch.save({"family": build(name, *cost.values(), rule).hyperparameters()}, path)

    stored("gas", nfe=4)
    assert student_of_checkpoint(str(path), (asked,)).family == asked.family
    for name, nfe in (("gas", 5), ("epd", 6)):
        stored(name, nfe=nfe)
        with pytest.raises(ValueError, match=f"last.ckpt holds {name} with nfe {nfe}, and this run is of gas with nfe"):
            student_of_checkpoint(str(path), (asked,))
    points = Student.build("parallel", 3, rule, "edm", {}, "depth")
    stored("corrected", depth=3)  # the sequential solver that won over all placements
    assert student_of_checkpoint(str(path), (points,)).family.name == "corrected"
    stored("corrected", depth=4)
    with pytest.raises(ValueError, match="holds corrected with nfe 4, and this run is of parallel with nfe 6"):
        student_of_checkpoint(str(path), (points,))


def test_a_comparison_names_the_solver_that_came_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    own = [f"targets.{name}={'null' if value is None else value}" for name, value in TARGETS.items()]
    quiet = ["logger=csv", "trainer=cpu", "trainer.enable_progress_bar=false", "run_name=test"]
    few = [f"fit.placements.{name}=1" for name in ("placements", "iterations", "final_iterations")]
    solver = ["model=mixture", "solver=parallel", "solver.depth=4", "solver.points=3"]
    with initialize_config_dir(str(find_configs()), version_base="1.3"):
        config: Any = OmegaConf.to_container(
            compose("train", overrides=[*own, *quiet, *few, *solver, f"output_dir={tmp_path}"])
        )
    compared: list[str] = []
    monkeypatch.setattr("solverdistill.training.run.compare_at_the_end", lambda *given: compared.append(given[2]))
    train(config)
    assert compared == ["corrected"] == [sd.read_solver(tmp_path / "solver.json").family["name"]]


def test_what_the_command_line_states_of_the_solver_is_told_from_defaults() -> None:
    solver = {"name": "gas", "nfe": 6, "grid": {"kind": "quadratic"}}
    assert asked_for(["start=x.json", "model=mixture"], solver) == {}
    assert asked_for(["solver=gas", "+solver.nfe=6"], solver) == {"name": "gas", "nfe": 6}
    assert asked_for(["solver.grid.kind=quadratic"], solver) == {"grid": {"kind": "quadratic"}}
    assert asked_for(["experiment=gs_published"], solver) == {"name": "gas"}
