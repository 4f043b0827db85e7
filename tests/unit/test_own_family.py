"""A family outside the package: found by its dotted name, stored under it, and never imported because of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from solverdistill import Grid, families, load_solver, read_solver, sample, save_solver
from solverdistill.consumers.kdiffusion import sigmas_of
from solverdistill.families.student import Student
from solverdistill.fits.race.fit import RaceFit, run_race
from solverdistill.importers import Settings, import_solver
from solverdistill.programs.program import SolverProgram
from solverdistill.references.batch import Batch
from solverdistill.references.solving import Reference
from solverdistill.teachers.mixture import toy_mixture
from solverdistill.training.run import student_of_checkpoint

GRID = Grid("polynomial", steps=3)
MODULE = '''
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from solverdistill.families import build
from solverdistill.families.classical.adams import IPNDM


@dataclass(frozen=True, kw_only=True)
class Damped(IPNDM):
    """iPNDM whose steps are scaled."""

    limit: float = 1.0
    name: ClassVar[str] = "damped"

    def init(self, seed=0):
        return {"damping": torch.zeros(self.steps, dtype=torch.float64)}

    def prepare(self, params):
        return self.limit * torch.exp(-params["damping"])

    def update(self, i, y, history, slope, values):
        y_next, history = super().update(i, y, history, slope, self.timeline)
        return y + (y_next - y) * values[i], history


def second_order(grid, path, afs=False):
    return Damped(grid=grid, path=path, afs=afs, max_order=2)


def shipped(grid, path):
    return build("dss", grid, path)


def nothing(grid, path):
    return None


class Unrelated:
    pass


number = 3
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a module of the user's, whose families nobody has imported."""
    (tmp_path / "own_solvers.py").write_text(MODULE)
    (tmp_path / "broken_solvers.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("own_solvers", "broken_solvers"):
        sys.modules.pop(name, None)


def test_a_class_is_built_stored_and_built_again() -> None:
    family = families.build("own_solvers.Damped", GRID, limit=0.9)
    stored = family.hyperparameters()
    assert (family.name, stored["name"], stored["limit"]) == ("damped", "own_solvers.Damped", 0.9)
    assert families.build(**json.loads(json.dumps(stored))) == family
    assert families.build("own_solvers.Damped", GRID).program(family.init(0)).nfe == family.nfe == 3


def test_a_function_makes_a_family_which_is_stored_by_its_class() -> None:
    family = families.build("own_solvers.second_order", GRID, afs=True)
    stored = family.hyperparameters()
    assert (stored["name"], stored["max_order"], stored["afs"]) == ("own_solvers.Damped", 2, True)
    assert families.build(**stored) == family
    assert families.build("own_solvers.shipped", GRID).hyperparameters()["name"] == "dss"


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("own_solver.Damped", {}, "'own_solver.Damped' cannot be imported .No module named 'own_solver'"),
        ("own_solvers.Dampened", {}, "'own_solvers.Dampened' cannot be imported .*has no Dampened"),
        ("broken_solvers.Damped", {}, "cannot be imported .No module named 'a_package_that_is_not_there'"),
        ("own_solvers.number", {}, "'own_solvers.number' is 3; it must be a function or a class"),
        ("own_solvers.Unrelated", {}, "'own_solvers.Unrelated' is a class that does not derive from solverdistill"),
        ("own_solvers.nothing", {}, "'own_solvers.nothing' gives None, which is no solverdistill"),
        ("own_solvers.Damped", {"order": 2}, "family 'own_solvers.Damped' has no hyperparameter 'order'; it has: "),
        ("own_solvers.second_order", {"order": 2}, "does not take grid, path, order: got an unexpected .* 'order'"),
        ("Damped", {}, "solver family 'Damped' is unknown; known: .*; your own goes by its dotted name"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(name: str, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        families.build(name, GRID, **options)
    with pytest.raises(ValueError, match=sentence):
        Student.build(name, 3, GRID, "edm", options)


@pytest.mark.parametrize("name", ["own_solvers.Damped", "own_solvers.second_order"])
def test_a_race_goes_on_with_the_same_family(name: str) -> None:
    student, noise = Student.build(name, 4, GRID, "edm", {}), torch.randn(16, 6, dtype=torch.float64)
    batch = Batch(noise, noise[None][:0], Reference(steps=30).solve(toy_mixture(), toy_mixture(), noise).end())
    winner, _, report = run_race(student, toy_mixture(), batch, settings=RaceFit(first=2, survivors=1))
    assert type(winner.family) is type(student.family) and winner.family.nfe == 4 and winner.name == name
    assert report.rmse < 0.9 * report.history[0].rmse


def foreign_file(folder: Path, name: str = "own_solvers.Damped") -> Path:
    """A solver file that names a module which writes a file when it is imported."""
    family = families.build("euler", GRID)
    (folder / "own_solvers.py").write_text("open('imported', 'w')\n" + MODULE)
    hyperparameters = {**family.hyperparameters(), "name": name}
    return save_solver(folder / "solver.json", family.program(), hyperparameters, {})


def test_a_file_that_is_read_and_played_imports_nothing(folder: Path) -> None:
    path = foreign_file(folder)
    read, program = read_solver(path), load_solver(path)
    assert isinstance(program, SolverProgram) and read.family["name"] == "own_solvers.Damped"
    assert sample(program, toy_mixture(), torch.randn(2, 6)).isfinite().all()
    assert len(sigmas_of(read)) == 4
    with pytest.raises(ValueError, match="family 'own_solvers.Damped', which is none of this package, and a file impo"):
        families.rebuild(read.family)
    with pytest.raises(ValueError):
        import_solver(path, Settings())
    assert not (folder / "imported").exists() and "own_solvers" not in sys.modules


@pytest.mark.parametrize("name", [None, ["os"], "os.system", "own_solvers", "__main__.Damped"])
def test_a_file_that_names_something_else_is_refused(name: object) -> None:
    stored = {**families.build("euler", GRID).hyperparameters(), "name": name}
    with pytest.raises(ValueError, match="which is none of this package"):
        families.rebuild(stored, families.build("dss", GRID))


def test_a_resumed_run_makes_the_family_of_its_configuration_and_no_other(folder: Path) -> None:
    own = Student.build("own_solvers.Damped", 3, GRID, "edm", {})
    moved = own.elsewhere(Grid("quadratic"), {"limit": 0.5}).family
    torch.save({"family": moved.hyperparameters()}, folder / "last.ckpt")
    assert student_of_checkpoint(str(folder / "last.ckpt"), (own,)).family == moved
    with pytest.raises(ValueError, match="training goes on with solver.name set to that family"):
        student_of_checkpoint(str(folder / "last.ckpt"), (Student.build("dss", 3, GRID, "edm", {}),))
