"""What `distill` gives back: a solver, what is known of it, and what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from solverdistill.evaluation.comparison import Comparison, compare_with_classical
from solverdistill.families.base import Family, Params
from solverdistill.fits.report import FitReport
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import save_solver
from solverdistill.references.serving import TargetData
from solverdistill.training.configuration import Run


@dataclass(frozen=True)
class Distilled:
    """A fitted solver.

    Args:
        family: The student, on the grid that it was fitted on.
        params: Its params, float64 on the host.
        rmse: Mean RMSE of its samples against the reference end points, on held-out noise, in data units.
        reports: What targets and fits did and cost, in their order.
        provenance: Where it comes from, as its file says it.
    """

    family: Family
    params: Params
    rmse: float
    reports: Sequence[FitReport]
    provenance: Mapping[str, Any] = field(repr=False)
    run: Run = field(repr=False)
    data: TargetData = field(repr=False)

    @cached_property
    def program(self) -> SolverProgram:
        """The solver as a table, which `sample` plays."""
        return self.family.program(self.params).detach()

    @cached_property
    def _compared(self) -> dict[int, Comparison]:
        return {}

    @property
    def evaluations(self) -> int:
        """Evaluations of the network that everything took, references included, in forward equivalents."""
        return sum(report.evaluations for report in self.reports)

    def save(self, path: str | Path) -> Path:
        """Write the solver file, as `train.py` writes solver.json."""
        return save_solver(path, self.program, self.family.hyperparameters(), self.params, self.provenance)

    def compare(self, batch_size: int = 128) -> Comparison:
        """Compare with every classical solver of the same nfe and of the same depth, on noise that no fit has seen.

        Args:
            batch_size: Samples per network call and stage.
        Returns:
            The rows, this solver's first: a list, which pandas takes as it is. Asked for again, they are not measured
            again.
        Raises:
            ValueError: the teacher is no longer the one that the solver was fitted to.
        """
        if self.run.teacher.fingerprint() != self.provenance["teacher"]["fingerprint"]:
            raise ValueError(
                f"{self.run.teacher.name} has changed since the solver was fitted to it, and a comparison would say "
                "nothing; distil again"
            )
        if batch_size not in self._compared:
            test, run, error = self.data.split("test"), self.run, self.data.choice.error
            student = self.family.name, self.program
            found = compare_with_classical(*student, run.teacher, run.denoiser, test, batch_size, error)
            self._compared[batch_size] = found
        return self._compared[batch_size]

    def figure(self, samples: int = 10) -> Any:
        """Samples side by side: noise, the best classical solver of the same cost, this solver, the reference.

        Args:
            samples: Rows of the figure.
        Returns:
            A matplotlib figure. Of teachers whose samples are no images: error against nfe and depth.
        """
        return self.compare().figure(samples)

    def __repr__(self) -> str:
        program = self.program
        return (
            f"Distilled({self.family.name} for {self.run.teacher.name}: nfe {program.nfe}, depth {program.depth}, "
            f"RMSE {self.rmse:.4f}, {self.evaluations:,} evaluations)"
        )
