"""The pass of least squares over the rows of a student; `solverdistill.fits.least_squares.fit` has the equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.fits.least_squares.linear_rows import LinearTable, Registers, Row
from solverdistill.fits.least_squares.row_equations import KEEP, Reduce, RowEquations, row_equations
from solverdistill.fits.least_squares.wanted_states import FINE_SOLVERS, FORMS, Wanted
from solverdistill.fits.report import Meter
from solverdistill.references.batch import Batch
from solverdistill.support.processes import total
from solverdistill.support.type_checks import check_fields, check_ranges


@dataclass(frozen=True)
class RowSettings:
    """Settings of a pass over the rows.

    Args:
        form: "rollout", "teacher_forced" or "local".
        ridge: Weight of the squared corrections; null tries several and keeps what is best on held-out samples.
        samples: Samples of the training set that are used, at most.
        batch_size: Samples that go through the network at once.
        fine_steps: Steps from the student's last state that "local" solves, uniform in the path's own unit.
        fine_solver: Their solver, "heun" or "euler".
    """

    form: str = "rollout"
    ridge: float | None = None
    samples: int = 256
    batch_size: int = 64
    fine_steps: int = 3
    fine_solver: str = "heun"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.form not in FORMS:
            raise ValueError(f"fit.form is {self.form!r}; known: {', '.join(FORMS)}")
        if self.fine_solver not in FINE_SOLVERS:
            raise ValueError(f"fit.fine_solver is {self.fine_solver!r}; known: {', '.join(FINE_SOLVERS)}")
        check_ranges(self, "fit.", "samples", "batch_size", "fine_steps", least=1)
        check_ranges(self, "fit.", "ridge", least=0)


class RowFit(NamedTuple):
    """Mean squared distance of a row from the wanted states, before and after its fit."""

    row: int
    before: float
    after: float


class Walk:
    """One pass over the rows of a student, fitting each and going on with what it then gives.

    Args:
        table: The student, moved by the fit.
        registers: The noise, or for "teacher_forced" also all denoised images of the teacher's states.
        wanted: States that rows are fitted to.
        reduce: Sums a tensor over processes.
    """

    def __init__(self, table: LinearTable, registers: Registers, wanted: Wanted, reduce: Reduce) -> None:
        self.table, self.registers, self.wanted, self.reduce = table, registers, wanted, reduce
        self.fits: list[RowFit] = []

    def equations(self, row: Row, end: Tensor | None = None) -> RowEquations:
        """Normal equations of a row for the wanted states, or for given end points."""

        def target(index: Tensor) -> Tensor:
            return self.wanted(row.number, self.registers, index) if end is None else end[index]

        return row_equations(row, self.registers, target, self.reduce)

    def fit(self, r: int, ridge: float) -> None:
        """Fit row r."""
        row = self.table.row(r)
        if len(row.entries) == 0 or ridge == KEEP:
            return
        equations = self.equations(row)
        solution = equations.solve(ridge)
        self.fits.append(RowFit(r, float(equations.square), solution.square))
        self.table.move(row.entries, solution.step)

    def evaluations(self, ridge: float) -> None:
        """Fit the rows of all evaluations, one after the other, and make their denoised images."""
        for k in range(self.table.nfe):
            self.fit(k, ridge)
            if len(self.registers.images) == k + 1:
                self.registers.play(self.table.program, k)


@torch.no_grad()
def fit_rows(
    family: Family,
    denoiser: Any,
    batch: Batch,
    settings: RowSettings,
    start: Params | None = None,
    reduce: Reduce = total,
    meter: Meter | None = None,
) -> tuple[Params, list[RowFit]]:
    """Fit all rows of a student with one ridge, `settings.ridge` or 0, and look at no held-out samples.

    `batch` has the samples of this process; `meter` counts what is evaluated.
    """
    table, ridge = LinearTable(family, family.init(0) if start is None else start), settings.ridge or 0.0
    walk = begin(table, denoiser, batch, settings, meter or Meter(batch.noise.device), reduce)
    walk.evaluations(ridge)
    walk.fit(table.last, ridge)
    return table.params, walk.fits


def begin(
    table: LinearTable,
    denoiser: Any,
    batch: Batch,
    settings: RowSettings,
    meter: Meter,
    reduce: Reduce,
    images: list[Tensor] | None = None,
) -> Walk:
    """A walk with the registers that its form begins with, which may be the `images` of a walk before."""
    registers = Registers(denoiser, batch, settings.batch_size, meter)
    wanted = Wanted(table, denoiser, batch, settings.form, (settings.fine_solver, settings.fine_steps), meter)
    if images is not None:
        registers.images = images
    elif settings.form == "teacher_forced":
        for k in range(table.nfe):
            registers.evaluate(table.program, k, lambda index, k=k: wanted.teachers(k, index))
    return Walk(table, registers, wanted, reduce)
