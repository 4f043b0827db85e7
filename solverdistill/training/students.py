"""Builds the student of a configuration: its family at exactly its cost, on the teacher's path.

`solver=auto` stands for several, at one cost: all of them race and descend, and the one that ends lowest on held-out
samples is the student (`fits.race`, `fits.gauss_newton`). By depth, points beside the evaluations of that one are tried
as well (`fits.placements`), for they take as many sequential calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from solverdistill.denoisers.base import Teacher
from solverdistill.families.step_search import check_cost
from solverdistill.families.student import Student
from solverdistill.fits.placements import PlacementFit
from solverdistill.fits.protocol import Fit
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import make_path
from solverdistill.references.targets import TargetSettings
from solverdistill.support.instantiate import MISSING
from solverdistill.training.compose import compose, options_of
from solverdistill.training.config_files import find_configs

AUTO = "auto"
SETTINGS = ("nfe", "depth", "grid", "path", "among", "points")  # of solver=auto
NFE = 6  # where neither nfe nor depth is given
HELD_OUT = 512  # samples that placements are chosen by


def make_students(solver: Mapping[str, Any], teacher: Teacher) -> tuple[Student, ...]:
    """The student of a solver config, or of `solver=auto` those of every family that can have its cost.

    Raises:
        ValueError, TypeError: a setting cannot be used, or no family can have the cost.
    """
    if solver["name"] != AUTO:
        return (make_student(solver, teacher),)
    unknown = sorted(solver.keys() - {"name", *SETTINGS})
    if unknown:
        raise ValueError(f"solver=auto has no setting {unknown[0]!r}; it has: {', '.join(SETTINGS)}")
    names, shared = solver.get("among"), {key: solver.get(key) for key in ("nfe", "depth", "grid", "path")}
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"solver.among is a list of families, as [corrected,bns,gas], not {names!r}")
    if shared["nfe"] is None and shared["depth"] is None:
        shared["nfe"] = NFE
    students, refused = list[Student](), ""
    for name in names:
        try:
            students.append(make_student({**shipped(name), **shared, "name": name}, teacher))
        except ValueError as error:
            refused = refused or str(error)
    if not students:
        raise ValueError(refused)
    return tuple(students)


def shipped(name: str) -> dict[str, Any]:
    """Settings of a family's own configuration; none where it has none."""
    folder = find_configs()
    return compose(folder, {"solver": name})["solver"] if name in options_of(folder, "solver") else {}


def with_points(
    solver: Mapping[str, Any], fits: Mapping[str, Fit], targets: TargetSettings
) -> tuple[dict[str, Fit], TargetSettings]:
    """The fits and targets of a run; where `solver=auto` is asked for a depth, points beside evaluations come last.

    There are many placements to choose from, so that held-out samples that are no other number than the default one
    are more.
    """
    points = solver.get("points")
    if solver["name"] != AUTO or solver.get("depth") is None or points == 1 or "placements" in fits:
        return dict(fits), targets
    if targets.validation_samples == TargetSettings.validation_samples:
        targets = replace(targets, validation_samples=HELD_OUT)
    return {**fits, "placements": PlacementFit(points=points)}, targets


def make_student(solver: Mapping[str, Any], teacher: Teacher) -> Student:
    """Build the family of a solver config at exactly its nfe, or its depth, on the teacher's path.

    `solver.grid` is a rule, whose ends are the teacher's noise range unless stated, or a list of noise levels (on the
    command line `~solver.grid '+solver.grid=[80.0,1.5,0.002]'`: hydra puts no list in the place of a rule), all in the
    unit of `solver.path` where the student has a path of its own.
    """
    options = deepcopy(dict(solver))
    name, nfe, depth, grid, path = (options.pop(key, None) for key in ("name", "nfe", "depth", "grid", "path"))
    if name == MISSING:
        raise ValueError("solver.name must be given: the dotted name of a family of your own, my_package.MyFamily")
    if nfe is not None and depth is not None:
        raise ValueError(f"solver.nfe={nfe} and solver.depth={depth} both say what a sample costs; set one to null")
    cost, wanted = ("nfe", nfe) if depth is None else ("depth", depth)
    wanted = check_cost(f"solver.{cost}", wanted)
    path = teacher.path if path is None else make_path(path)
    if isinstance(grid, list):
        for level in grid:
            if isinstance(level, bool) or not isinstance(level, (int, float)):
                raise TypeError(f"solver.grid must be a rule or a list of noise levels, which {level!r} is not")
        return check_pure_noise(Student.build(name, wanted, grid, path, options, cost), teacher)
    stated = dict(grid or {})
    if not {"start", "end"} <= set(stated):
        start, end = teacher.noise_range_on(path)
        stated = {"start": start, "end": end, **stated}
    try:
        rule = Grid(**stated)
    except TypeError as error:
        raise ValueError(f"solver.grid cannot be used: {error}") from None
    return check_pure_noise(Student.build(name, wanted, rule, path, options, cost), teacher)


def check_pure_noise(student: Student, teacher: Teacher) -> Student:
    """Refuse a student that asks a network that predicts noise at pure noise, where its answer says nothing.

    Raises:
        ValueError: its table tells the network alpha = 0.
    """
    family = student.family
    if teacher.prediction == "eps" and bool((family.program(family.init(0)).alpha == 0).any()):
        raise ValueError(
            f"{teacher.name} predicts noise and says nothing at pure noise, where {family.name} begins on the "
            f"{family.path.name} path; let the grid begin below it, for example with solver.grid.start=0.99"
        )
    return student
