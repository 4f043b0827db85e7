"""What the benchmark of the default run measures against: end points of an exact solve, kept in the output folder.

Samples are those of the "test" split, which no run of this package fits to or chooses by. Their reference is solved
with about ten times the steps that `targets=auto` takes, or more; how far it is still off is measured on a few samples
against half the steps, and kept beside the end points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import make_guided
from solverdistill.denoisers.wrappers import Counted
from solverdistill.fits.batches import mean_error
from solverdistill.fits.report import Meter
from solverdistill.objectives.distances import rmse
from solverdistill.programs.program import SolverProgram
from solverdistill.references.batch import Batch
from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.references.solving import Reference

from .teachers import GUIDANCE, load

CHUNK, BATCH = 32, 64
FEW = 8  # samples on which the solve is compared with one of half its steps
ORDER = 2  # of iPNDM, whose first steps are short ones of Euler and Adams-Bashforth


@dataclass(frozen=True)
class Solve:
    """How exact end points of a teacher are made: samples, and the grid and steps of iPNDM."""

    samples: int
    grid: str
    steps: int

    @property
    def reference(self) -> Reference:
        """The solver."""
        return Reference(grid=self.grid, steps=self.steps)


SOLVES = {
    "digits": Solve(512, "polynomial", 640),
    "emnist": Solve(512, "time_uniform", 640),
    "mnist": Solve(512, "logsnr", 640),
    "emoji32": Solve(256, "polynomial", 280),
}


@dataclass(frozen=True)
class Bench:
    """A teacher, and the exact end points of its test samples.

    Args:
        name: One of `teachers.TEACHERS`.
        teacher: The frozen network.
        denoiser: The teacher, possibly guided.
        folder: Where end points are kept.
        solve: How they are made.
    """

    name: str
    teacher: Teacher
    denoiser: Counted
    folder: Path
    solve: Solve

    @classmethod
    def of(cls, name: str, weights: Mapping[str, str], folder: Path, samples: int | None = None) -> Bench:
        """Load a teacher; of its test samples the first few, where a number is given."""
        teacher, denoiser = make_guided(load(name, weights), GUIDANCE.get(name, 1.0))
        solve = SOLVES[name]
        wrapped: Any = denoiser
        solve = solve if samples is None else replace(solve, samples=samples)
        return cls(name, teacher, Counted(wrapped), folder, solve)

    @cached_property
    def test(self) -> Batch:
        """Noise, conditions and exact end points."""
        parts = [self._chunk(first) for first in range(0, self.solve.samples, CHUNK)]
        noise, end = (torch.cat([part[name] for part in parts])[: self.solve.samples] for name in ("noise", "end"))
        cond = torch.cat([part["cond"] for part in parts])[: self.solve.samples] if "cond" in parts[0] else None
        return Batch(noise, noise[None, :0], end, cond)

    def error(self, program: SolverProgram) -> float:
        """Mean RMSE of a solver's samples against the exact end points."""
        with torch.no_grad():
            return mean_error(program.detach(), self.denoiser, self.test, BATCH, Meter())

    @property
    def off(self) -> float:
        """About the mean RMSE of the exact end points themselves."""
        return float(self._chunk(0)["off"])

    def _chunk(self, first: int) -> dict[str, Tensor]:
        """Some samples from their file, which is made where it is missing."""
        facts = f"{self.solve.grid}-{self.solve.steps}-{self.teacher.fingerprint()}"
        path = self.folder / "exact" / f"{self.name}-{facts}-{first:04}.safetensors"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = path.with_suffix(".part")
            save_file(self._solved(first), made)
            made.replace(path)
        return load_file(path)

    def _solved(self, first: int) -> dict[str, Tensor]:
        places = range(SPLITS["test"] + first, SPLITS["test"] + first + CHUNK)
        noise, cond = seeded_noise(places, self.teacher)
        ends = self._end(self.solve.reference, noise, cond)
        solved = {"noise": noise, "end": ends.float(), **({} if cond is None else {"cond": cond})}
        if first == 0:
            coarse = replace(self.solve.reference, steps=self.solve.steps // 2)
            few = self._end(coarse, noise[:FEW], None if cond is None else cond[:FEW])
            solved["off"] = rmse(few, ends[:FEW]).mean() / (2**ORDER - 1)
        return solved

    def _end(self, reference: Reference, noise: Tensor, cond: Any) -> Tensor:
        with torch.no_grad():
            return reference.solve(self.teacher, self.denoiser, noise, cond).end()
