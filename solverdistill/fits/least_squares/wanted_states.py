"""States that the rows of a student should form: the teacher's, or fine solves from the student's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solverdistill.families.base import Family
from solverdistill.families.classical.singlestep import Euler, Heun
from solverdistill.fits.batches import take
from solverdistill.fits.least_squares.linear_rows import LinearTable, Registers
from solverdistill.fits.report import Meter
from solverdistill.noise.levels import Level
from solverdistill.programs.tracing import Eager
from solverdistill.references.batch import Batch

FORMS = ("rollout", "teacher_forced", "local")
FINE_SOLVERS: dict[str, type[Family]] = {"heun": Heun, "euler": Euler}


class Wanted:
    """The states that rows are wanted to form.

    Args:
        table: The student.
        denoiser: Solves fine steps.
        batch: Samples with their reference.
        form: "rollout" or "teacher_forced": the teacher's states; "local": a fine solve of each step.
        fine: Solver of the fine steps, by name, and their number.
        meter: Counts what fine steps evaluate.
    Raises:
        ValueError: the batch has no reference trajectories, and the form needs them.
    """

    def __init__(
        self, table: LinearTable, denoiser: Any, batch: Batch, form: str, fine: tuple[str, int], meter: Meter
    ) -> None:
        if form != "local" and batch.reference is None:
            raise ValueError(
                f"fit.form={form} needs the whole reference trajectories in `batch.reference`; "
                "make dense targets, or take fit.form=local"
            )
        self.table, self.denoiser, self.batch, self.form, self.meter = table, denoiser, batch, form, meter
        self.fine_solver, self.fine_steps = FINE_SOLVERS[fine[0]], fine[1]

    def __call__(self, r: int, registers: Registers, index: Tensor) -> Tensor:
        """States of the samples at given positions at the level of row r, in its scale."""
        if self.form == "local":
            return self._finely(r, registers, index)
        return self.batch.end[index] if r == self.table.last else self.teachers(r, index)

    def teachers(self, r: int, index: Tensor) -> Tensor:
        """The teacher's states at the level of row r."""
        assert self.batch.reference is not None
        states = self.batch.reference.take(index).at([self.table.level(r)])[0]
        return states.to(self.batch.noise.device, torch.promote_types(self.batch.noise.dtype, torch.float32))

    def _finely(self, r: int, registers: Registers, index: Tensor) -> Tensor:
        path, end = self.table.family.path, self.table.level(r)
        start, x = self._latest(r, registers, index)
        ends = [path.from_clock(path.clock_of(level)) for level in (start, end)]
        x = x * (path.level(ends[0]).hypot() / start.hypot())
        if start is not end:
            share = torch.arange(self.fine_steps + 1, dtype=torch.float64) / self.fine_steps
            grid = tuple(torch.lerp(ends[0], ends[1], share).tolist())
            solver = self.fine_solver(grid=grid, path=path)
            evaluate, values = Eager(self.denoiser, take(self.batch, index).cond), solver.prepare({})
            with self.meter.measure("teacher", solver.nfe * len(index)):
                for i in range(solver.steps):
                    x, _ = solver.step(i, x, (), evaluate, values)
        return x * (end.hypot() / path.level(ends[1]).hypot())

    def _latest(self, r: int, registers: Registers, index: Tensor) -> tuple[Level, Tensor]:
        """The student's latest state of those noisier than row r that are nearest to it; the initial one if none is."""
        table, path = self.table, self.table.family.path
        nodes = [table.family.prepared_levels(table.params)[0], *(table.level(k) for k in range(min(r, table.nfe)))]
        clocks = torch.stack([path.clock_of(level) for level in nodes]).detach()
        noisier = clocks > path.clock_of(table.level(r)) * (1 + 1e-9)
        if bool(noisier.any()):
            nearest = clocks <= clocks[noisier].min() * (1 + 1e-9)
            j = int((noisier & nearest).nonzero().max())
            if j > 0:
                return nodes[j], registers.combine(table.coefficients(j - 1), index)
        scale = table.family.start_scale(table.params)
        start = nodes[0] if bool(noisier.any()) else table.level(r)
        initial = registers.images[0][index] * float(scale * start.hypot() / nodes[0].hypot())
        return start, initial
