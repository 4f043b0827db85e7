"""The comparison at the end of a run: a table in the terminal, metrics.csv, metrics.md and two figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solverdistill.denoisers.base import Teacher
from solverdistill.evaluation import lower_starts
from solverdistill.evaluation.candidates import CLASSICAL
from solverdistill.evaluation.comparison import CURVE_NFE, CURVE_SAMPLES, Comparison, compare_with_classical
from solverdistill.evaluation.reports import figures
from solverdistill.evaluation.reports.table_files import write_csv, write_markdown
from solverdistill.evaluation.reports.terminal_table import print_table
from solverdistill.families.step_search import check_cost
from solverdistill.programs.program import SolverProgram
from solverdistill.references.targets import Targets
from solverdistill.support.progress import console
from solverdistill.support.type_checks import check_fields, check_ranges

FEWEST = 32  # samples of a comparison, whatever it may take
MEANING = "RMSE (per image, data units) and PSNR against the reference end points; best values in bold."


@dataclass(frozen=True)
class EvaluationSettings:
    """What is compared at the end of a run.

    Args:
        enabled: Whether there is a comparison.
        share: How many evaluations it takes, its reference end points included, at most, as a part of those of the
            fits; as many held-out samples are compared, 32 at least. None compares all of them.
        batch_size: Samples per network call and stage.
        grid_samples: Rows of the sample grid.
        curve_nfe: Costs at which classical solvers are drawn in the figure.
        curve_samples: Samples used for the figure.
    """

    enabled: bool = True
    share: float | None = 0.1
    batch_size: int = 128
    grid_samples: int = 10
    curve_nfe: list[int] = field(default_factory=lambda: list(CURVE_NFE))
    curve_samples: int = CURVE_SAMPLES

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, "evaluation.", "batch_size", "grid_samples", "curve_samples", least=1)
        for cost in self.curve_nfe:
            check_cost("evaluation.curve_nfe", cost)
        check_ranges(self, "evaluation.", "share", above=0)

    def samples(self, nfe: int, depth: int, most: int, reference: int, fits: int) -> int:
        """How many held-out samples are compared.

        Args:
            nfe: The student's evaluations.
            depth: Its sequential calls.
            most: Held-out samples that there are.
            reference: Evaluations of a reference end point.
            fits: Evaluations of the fits.
        """
        if self.share is None:
            return most
        allowed = self.share * fits
        within = (n for n in range(most, FEWEST, -1) if self.expected(nfe, depth, n) + n * reference <= allowed)
        return next(within, min(FEWEST, most))

    def expected(self, nfe: int, depth: int, samples: int) -> int:
        """The most evaluations that `compare_at_the_end` takes, beside those of the reference end points.

        Args:
            nfe: The student's evaluations.
            depth: Its sequential calls, with which classical solvers are compared too.
            samples: Held-out samples.
        """
        solvers = sum(len(baseline.short) for baseline in CLASSICAL)
        few = len(lower_starts.SHIFTS) * solvers * min(lower_starts.SAMPLES, samples)
        compared = sum(cost * ((solvers + lower_starts.KEPT) * samples + few) for cost in {nfe, depth})
        curves = sum(self.curve_nfe) * solvers * min(self.curve_samples, samples)
        return nfe * samples + compared + curves + 2 * nfe * min(self.grid_samples, samples)


def compare_at_the_end(
    settings: EvaluationSettings,
    output: Path,
    label: str,
    program: SolverProgram,
    teacher: Teacher,
    denoiser: Any,
    targets: Targets,
    reference_error: float | None = None,
) -> Comparison:
    """Compare a student with the short list of classical solvers at the same nfe and depth, and show it.

    Args:
        settings: What to do.
        output: Folder of the run.
        label: The student's name.
        program: The student.
        teacher: Gives path, noise range and feature extractor.
        denoiser: The teacher, possibly guided.
        targets: Held-out samples with their reference end points.
        reference_error: RMSE of the reference from the exact solution; None where it was not measured.
    Returns:
        The rows of metrics.csv.
    """
    shown = label, program, teacher, denoiser, targets, settings.batch_size, reference_error
    found = compare_with_classical(*shown, short=True)
    screen, table = console(), found.layout
    print_table(screen, table, found.names)
    write_csv(output / "metrics.csv", found)
    below = f"{MEANING}\n\nReference: {table.yardstick}."
    write_markdown(
        output / "metrics.md",
        table,
        found.names,
        f"{label} for {teacher.name}",
        below,
    )
    folder = output / "figures"
    folder.mkdir(exist_ok=True)
    figures.save(found.errors(settings.curve_nfe, settings.curve_samples), folder / "error_against_nfe.png")
    if found.subject.has_images:
        figures.save(found.samples(settings.grid_samples), folder / "samples.png")
    screen.print(f"solver.json, metrics.csv and figures are in {output}")
    return found
