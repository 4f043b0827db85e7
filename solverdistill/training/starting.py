"""Where a run begins that is given a solver file: at its family and params, or at a free table of its program.

    python train.py start=solver.json            the family, nfe and path of the file
    python train.py start=zoo:ays-sd15-nfe10     any solver; one without a family, or without params, as a `table`
    python train.py solver=table start=gas.json  its whole table free
    python train.py solver=parallel start=five_steps.json solver.points=2

What is asked for beside the file has to agree with it. A file imports nothing: a family that is none of this package
begins as a table, unless `solver=` names it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from solverdistill import families
from solverdistill.denoisers.base import Teacher
from solverdistill.families.base import Family, Params
from solverdistill.families.learned.parallel import Parallel
from solverdistill.families.learned.table import Table
from solverdistill.families.student import Student
from solverdistill.noise.paths import Path, make_path
from solverdistill.programs.solver_file import SolverFile, read_solver

SAME = 1e-6  # largest difference between a table of the file and the one that its params give
log = logging.getLogger(__name__)


class Start(NamedTuple):
    """A student, and the params that it begins at; None for its own initial ones."""

    student: Student
    params: Params | None


def read_start(
    path: str | os.PathLike[str], asked: Mapping[str, Any], teacher: Teacher, configured: Family | None = None
) -> Start:
    """The student of a solver file.

    Args:
        path: The file, or `zoo:<name>`.
        asked: Settings of the solver that were asked for beside it, `name` among them where a family was.
        teacher: Gives the path and the noise range of a table whose file does not say.
        configured: The family that was asked for, where it is none of this package.
    Raises:
        ValueError: the file cannot be read, or something else was asked for than it holds.
    """
    file, wanted = read_solver(path), asked.get("name")
    stored = file.family.get("name")
    if wanted in (Table.name, Parallel.name) and wanted != stored:
        start = Start(Student.of(table_of(file, teacher, asked if wanted == Parallel.name else None)), None)
    elif wanted not in (None, stored):
        what = f"a solver of the family {stored!r}" if stored else "a solver without a family"
        raise ValueError(
            f"start={path} holds {what} and solver={wanted} was asked for; leave one of them out, or take "
            "solver=table, which begins at any file"
        )
    else:
        try:
            start = own_family(file, configured)
        except (ValueError, TypeError) as error:
            if wanted is not None:
                raise ValueError(f"start={path} cannot be begun at as {wanted}: {error}") from None
            log.info("start=%s begins as a table: %s", path, error)
            start = Start(Student.of(table_of(file, teacher)), None)
    check_asked(path, asked, start.student.family)
    return start


def own_family(file: SolverFile, configured: Family | None = None) -> Start:
    """The family and the params of a file.

    Raises:
        ValueError, TypeError: it has none that give its table, or none that can be trained.
    """
    if not file.family.get("name"):
        raise ValueError("the file names no family")
    family = families.rebuild(file.family, configured)
    if not family.init(0):
        raise ValueError(f"{family.name} has no params")
    ours, theirs = family.program(file.params).coefficients, file.program.coefficients
    shapes = [value.shape for value in ours] == [value.shape for value in theirs]
    if not shapes or not all(torch.allclose(a, b, rtol=SAME, atol=SAME) for a, b in zip(ours, theirs, strict=True)):
        raise ValueError(f"its params do not give its table with this version of {family.name}")
    return Start(Student.of(family), file.params)


def table_of(file: SolverFile, teacher: Teacher, parallel: Mapping[str, Any] | None = None) -> Table:
    """A free table that begins as the program of a file.

    Args:
        file: The file; path and noise range are the teacher's where it says nothing of them.
        teacher: The frozen network.
        parallel: Settings of points beside its evaluations; None for none.
    """
    path: Path = make_path(file.family["path"]) if "path" in file.family else teacher.path
    grid = file.family.get("grid")
    top = grid[0] if isinstance(grid, list) and grid else teacher.noise_range_on(path)[0]
    table = Table.of(file.program, path, float(top))
    if parallel is None:
        return table
    own = {key: parallel[key] for key in ("points", "spread") if key in parallel}
    return Parallel(grid=table.grid, path=path, table=table.table, **own)


def check_asked(path: str | os.PathLike[str], asked: Mapping[str, Any], family: Family) -> None:
    """Refuse settings that are not those of the family that a file gives.

    Raises:
        ValueError: there is one; the message names both.
    """
    held = {"nfe": family.nfe, "depth": family.depth, **family.hyperparameters()}
    for key, value in asked.items():
        own = make_path(value).hyperparameters() if key == "path" and value is not None else value
        if value is not None and held.get(key) != own:
            what = f"{key}={held[key]}" if key in held and key not in ("grid", "table") else f"a {key} of its own"
            raise ValueError(
                f"solver.{key}={value} was asked for and start={path} begins as {family.name} with {what}; leave one "
                "of them out"
            )


def asked_for(overrides: Sequence[str], solver: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the solver that overrides of a command line state; all others are defaults.

    Args:
        overrides: As they were typed.
        solver: The composed settings of the solver.
    """
    keys = [override.lstrip("+~").split("=")[0] for override in overrides]
    asked = {"name": solver["name"]} if {"solver", "experiment"} & set(keys) else {}
    settings = [key.split(".")[1] for key in keys if key.startswith("solver.")]
    return {**asked, **{key: solver.get(key) for key in settings}}
