"""Free tables: any solver as a table of which every causal entry, and every told level, is learned.

The stages are those of the table that it starts from: evaluations of a stage stay side by side, and every row may use
the noise and all denoised images of the stages before it, whether the start did or not. See `corrections` for how
params move the entries; zero params are the start.

A table needs no times of its own. The levels of its states say how large corrections are and which of the teacher's
states least squares fits a row to, but nothing else depends on them: what a row forms and what the network is told are
both free. So every solver with these stages is one of these tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from solverdistill.families.base import Params
from solverdistill.families.learned.corrected import SEQUENTIAL, Corrected
from solverdistill.families.learned.corrections import Corrections, TableFamily
from solverdistill.noise.grids import grid_values
from solverdistill.noise.levels import Level
from solverdistill.noise.paths import Path
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import program_from_json, program_to_json
from solverdistill.support.json_files import parse_json

BASE = "unipc"
SMALLEST = 0.01  # size of a correction, as a share of its row's level: the sample is almost free of noise
SAME = 1e-4  # relative difference between a level of the table and of the grid, which a file may keep in float32


@dataclass(frozen=True, kw_only=True)
class Table(TableFamily):
    """A solver whose whole table is free: every causal entry of evaluations and sample, and every told level.

    Params: `correction_inputs` (nfe + 1, 1), `correction_denoised` (nfe + 1, nfe) and `told` (nfe,), all starting at 0.
    Entries of `correction_denoised` that are not causal never act, nor does `told` at pure noise and at clean data.
    States between the steps are read out as the start forms them, of what the evaluations give.

    Args:
        base: Classical solver, or "epd" or "epd_ipndm", that it starts as on the grid; None is unipc.
        order: Order of the base; None is the base's own default.
        table: Program that it starts as in place of a base, as a solver file holds it (`program_to_json`). Then the
            grid has the level of the first state and those of the program's readouts, and does not move.
    Raises:
        ValueError: base and table are both given, the program or its levels are refused.
    """

    base: str | None = None
    order: int | None = None
    table: Mapping[str, Any] | str | None = None
    name: ClassVar[str] = "table"

    @classmethod
    def of(cls, program: SolverProgram, path: Path, top: float) -> Table:
        """The free table that starts as a program of one input.

        Readouts whose noise levels do not decrease, and so are no steps of a grid, are left out but for the sample.

        Args:
            program: Where it starts.
            path: Path of its grid.
            top: Noise level of its first state, in the path's own unit.
        """
        readouts = program.readouts
        below = path.from_clock(path.clock_of(Level(readouts.alpha, readouts.sigma))).tolist()
        levels = [top, *below]
        if not all(a > b for a, b in zip(levels, below, strict=False)):
            keep = [*range(program.nfe), len(program.A) - 1]
            rows = {name: getattr(program, name)[keep] for name in ("A", "B", "mask", "level")}
            levels, program = [top, below[-1]], replace(program, **rows)
        return cls(grid=grid_values(levels, path), path=path, table=program_to_json(program))

    def __post_init__(self) -> None:
        if self.table is None:
            _ = self._based  # refuses what the base cannot be
            return
        if not isinstance(self.table, str):  # as text, families can be compared and hashed
            object.__setattr__(self, "table", json.dumps(self.table))
        if self.base is not None or self.order is not None or self.denoise_to_zero:
            raise ValueError(f"{self.name} starts as a given table or as a base, not both; leave base and order null")
        readouts = self.source.readouts
        clock = self.path.clock_of(Level(readouts.alpha, readouts.sigma))
        if len(readouts) != self.steps or not torch.allclose(clock, self.timeline.clock[1:], rtol=SAME, atol=1e-9):
            raise ValueError(
                f"the grid of {self.name} must end with the {len(readouts)} noise levels that its table reads out"
            )

    def starts(self) -> tuple[dict[str, Any], ...]:
        """Every sequential base; a given table keeps to itself."""
        named = {start["base"] for start in SEQUENTIAL}
        return ({}, *SEQUENTIAL) if self.table is None and self._based.base in named else ({},)

    @cached_property
    def _based(self) -> Corrected:
        """The base on the grid, as `corrected` builds it."""
        own = {"grid": self.grid, "path": self.path, "denoise_to_zero": self.denoise_to_zero}
        return Corrected(**own, base=self.base or BASE, order=self.order)

    @cached_property
    def source(self) -> SolverProgram:
        """The table or base that it starts from, with its own structure."""
        with torch.inference_mode(False):
            if self.table is not None:
                return program_from_json(parse_json(self.table) if isinstance(self.table, str) else self.table)
            return self._based.solver.program(self._based.solver.init(0)).detach()

    @cached_property
    def start(self) -> SolverProgram:
        """The table at zero params, in which every causal entry may be non-zero."""
        return every_causal_entry(self.source)

    @cached_property
    def corrections(self) -> Corrections:
        """What the params act on."""
        return Corrections.of(self.start, SMALLEST)

    def init(self, seed: int = 0) -> Params:
        return self.corrections.zeros()

    def prepare(self, params: Params) -> Params:
        return params

    def levels(self, values: Params) -> list[Level]:
        if self.table is None:
            return self._based.solver.levels(self._based.solver.prepare(self._based.solver.init(0)))
        return [self.timeline.level(0), *(Level(*level) for level in self.start.level[self.start.nfe :])]

    def initial_scale(self, values: Params) -> Tensor:
        return super().initial_scale(values) if self.table is not None else self._based.start_scale(self._based.init(0))

    def program(self, params: Params | None = None) -> SolverProgram:
        """The start with its corrections, differentiable in the params."""
        return self.corrections.apply(self.start, self._prepare(params))

    @cached_property
    def _table(self) -> SolverProgram:
        return self.start

    def hyperparameters(self) -> dict[str, Any]:
        given = super().hyperparameters()
        return {**given, "table": None if self.table is None else program_to_json(self.source)}


def every_causal_entry(program: SolverProgram) -> SolverProgram:
    """A program with the same numbers whose evaluations and sample may use everything that is known before them."""
    nfe, mask = program.nfe, program.mask.clone()
    stage_of = torch.empty(nfe, dtype=torch.int64)
    for number, stage in enumerate(program.stages):
        stage_of[list(stage)] = number
    mask[:nfe, program.inputs :] = (stage_of[None] < stage_of[:, None]).tril(-1)
    mask[:nfe, : program.inputs] = mask[-1] = True
    return replace(program, mask=mask)
