"""`solver.grid` as a list of noise levels: taken as it is when it fits the nfe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import Flow
from solverdistill.teachers.mixture import Mixture, toy_mixture
from solverdistill.training.configuration import make_student

CONFIGS = Path(__file__).parents[2] / "configs"
LEVELS = [80.0, 9.5, 1.25, 0.002]


def solver(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose("train", overrides=list(overrides)).solver)


@pytest.mark.parametrize(("name", "nfe"), [("epd", 8), ("dss", 3), ("dode_edm", 6)])
def test_a_list_is_taken_as_it_is(name: str, nfe: int) -> None:
    student = make_student(
        solver(f"solver={name}", f"solver.nfe={nfe}", "~solver.grid", f"+solver.grid={LEVELS}"), toy_mixture()
    )
    assert student.family.grid == tuple(LEVELS)
    assert student.family.nfe == nfe
    assert student.rule is None


def test_a_rule_is_a_rule_still() -> None:
    student = make_student(solver("solver=dss", "solver.nfe=3"), toy_mixture())
    assert isinstance(student.rule, Grid)
    assert len(student.family.grid) == 4


def test_a_list_that_does_not_fit_is_told_what_would() -> None:
    with pytest.raises(
        ValueError, match="lists 4 noise levels, on which epd spends 8 evaluations and not solver.nfe=5"
    ):
        make_student(solver("solver=epd", "solver.nfe=5", "~solver.grid", f"+solver.grid={LEVELS}"), toy_mixture())


@pytest.mark.parametrize(
    ("levels", "error", "sentence"),
    [
        ("[80.0,1.0,2.0,0.002]", ValueError, "not strictly decreasing and finite at entry 1"),
        ("[80.0]", ValueError, "a grid needs at least 2 noise levels"),
        ("[80.0,fine,1.0,0.002]", TypeError, "a rule or a list of noise levels, which 'fine' is not"),
        ("[80.0,true,0.5,0.002]", TypeError, "a rule or a list of noise levels, which True is not"),
    ],
)
def test_a_list_of_anything_else_is_refused(levels: str, error: type[Exception], sentence: Any) -> None:
    with pytest.raises(error, match=sentence):
        make_student(solver("solver=dss", "solver.nfe=3", "~solver.grid", f"+solver.grid={levels}"), toy_mixture())


def test_a_student_on_another_path_covers_the_same_noise_levels() -> None:
    teacher = toy_mixture()
    student = make_student(solver("solver=gas", "solver.nfe=4", "solver.path=vp"), teacher)
    path, rule = student.family.path, student.rule
    assert path.name == "vp" and rule is not None
    ratios = [float(path.sigma(level) / path.alpha(level)) for level in (rule.start, rule.end)]
    assert ratios == pytest.approx(list(teacher.noise_range), rel=1e-6)
    stated = make_student(solver("solver=gas", "solver.nfe=4", "solver.path=vp", "+solver.grid.start=0.9"), teacher)
    assert stated.rule is not None and (stated.rule.start, stated.rule.end) == (0.9, rule.end)


def test_ends_that_a_path_does_not_have_must_be_stated() -> None:
    flow = Mixture([[1.0]], [1.0], [0.5], path=Flow(), noise_range=(1.0, 0.0))
    with pytest.raises(ValueError, match="from 1 to 0 on the flow path, which the edm path has no levels for; state"):
        make_student(solver("solver=dss", "solver.nfe=3", "solver.path=edm"), flow)
    grid = ("+solver.grid.start=80.0", "+solver.grid.end=0.002")
    assert make_student(solver("solver=dss", "solver.nfe=3", "solver.path=edm", *grid), flow).family.path.name == "edm"
