"""The comparison at the end of a run: a table in the terminal, metrics.csv, metrics.md and two figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.evaluation.candidates import Candidate, classical_candidates
from solverdistill.evaluation.compare import compare, device_of
from solverdistill.evaluation.lower_starts import best_from_lower
from solverdistill.evaluation.reports import figures
from solverdistill.evaluation.reports.table_files import write_csv, write_markdown
from solverdistill.evaluation.reports.table_layout import by_role
from solverdistill.evaluation.reports.terminal_table import terminal_table
from solverdistill.evaluation.rows import Row
from solverdistill.objectives import features
from solverdistill.programs.program import SolverProgram
from solverdistill.references.targets import Targets
from solverdistill.support.progress import console
from solverdistill.support.type_checks import check_fields

IN_FIGURE = (
    "Euler polynomial",
    "iPNDM-3 quadratic",
    "iPNDM-4 polynomial",
    "DPM++(3M) logsnr",
    "UniPC-3 logsnr",
    "UniPC-3 quadratic",
    "DEIS-tAB3",
)
FROM_LOWER = "best begun lower"
MEANING = "RMSE (per image, data units) and PSNR against the reference end points; best values in bold."


@dataclass(frozen=True)
class EvaluationSettings:
    """What is compared at the end of a run.

    Args:
        enabled: Whether there is a comparison.
        batch_size: Samples per network call and stage.
        grid_samples: Rows of the sample grid.
        curve_nfe: Costs at which classical solvers are drawn in the figure.
        curve_samples: Samples used for the figure.
    """

    enabled: bool = True
    batch_size: int = 128
    grid_samples: int = 10
    curve_nfe: list[int] = field(default_factory=lambda: list(range(3, 11)))
    curve_samples: int = 32

    def __post_init__(self) -> None:
        check_fields(self)


def compare_at_the_end(
    settings: EvaluationSettings,
    output: Path,
    label: str,
    program: SolverProgram,
    teacher: Teacher,
    denoiser: Any,
    targets: Targets,
) -> list[Row]:
    """Compare a student with every classical solver of the same nfe and of the same depth, and show it.

    Args:
        settings: What to do.
        output: Folder of the run.
        label: The student's name.
        program: The student.
        teacher: Gives path, noise range and feature extractor.
        denoiser: The teacher, possibly guided.
        targets: Held-out samples with their reference end points.
    Returns:
        The rows of metrics.csv.
    """
    student = Candidate.of(label, program)
    noise, cond, end = targets.batch.noise, targets.batch.cond, targets.batch.end
    solvers, costs = (teacher.path, teacher.noise_range), (student.nfe, student.depth)
    lower = best_from_lower(*solvers, denoiser, noise, cond, end, *costs, settings.batch_size)
    classical = [*classical_candidates(*solvers, *costs).candidates, *lower]
    extractor = features.for_teacher(teacher)
    rows = compare(
        [student, *classical],
        denoiser,
        noise,
        cond,
        end,
        settings.batch_size,
        extractor.module if extractor else None,
        extractor.real if extractor else None,
    )
    table, names = by_role(rows), {"FD": f"FD({extractor.name})"} if extractor else {}
    screen = console()
    screen.print(terminal_table(table, names, plain=not screen.is_terminal))
    write_csv(output / "metrics.csv", rows)
    write_markdown(output / "metrics.md", table, names, f"{label} for {teacher.name}", MEANING)
    folder = output / "figures"
    folder.mkdir(exist_ok=True)
    curves = {**_curves(settings, teacher, denoiser, targets), FROM_LOWER: _best_rows(rows, lower)}
    figures.error_against_nfe(folder / "error_against_nfe.png", curves, [rows[0]])
    if len(teacher.shape) == 3 and teacher.shape[0] in (1, 3):
        equal = [row for row in rows if row.kind == "classical" and row.nfe == student.nfe]
        best = min(equal, key=lambda row: row.order).label if equal else None
        few = next((c for c in classical if (c.label, c.nfe) == (best, student.nfe)), None)
        _sample_grid(folder / "samples.png", settings, student, few, denoiser, targets)
    screen.print(f"solver.json, metrics.csv and figures are in {output}")
    return rows


def _best_rows(rows: Sequence[Row], candidates: Sequence[Candidate]) -> list[Row]:
    """The best of the candidates' rows at each nfe."""
    names = {(candidate.label, candidate.nfe) for candidate in candidates}
    best: dict[int | None, Row] = {}
    for row in sorted((row for row in rows if (row.label, row.nfe) in names), key=lambda row: row.order):
        best.setdefault(row.nfe, row)
    return list(best.values())


def _curves(settings: EvaluationSettings, teacher: Teacher, denoiser: Any, targets: Targets) -> dict[str, list[Row]]:
    """Classical solvers over a range of costs, on fewer samples."""
    part = targets.take(torch.arange(min(settings.curve_samples, len(targets))))
    candidates: dict[str, Candidate] = {}
    for nfe in settings.curve_nfe:
        for candidate in classical_candidates(teacher.path, teacher.noise_range, nfe).candidates:
            if any(candidate.label.startswith(label) for label in IN_FIGURE):
                candidates.setdefault(f"{candidate.label} {candidate.nfe}", candidate)
    rows = compare(list(candidates.values()), denoiser, part.noise, part.cond, part.end, settings.batch_size)
    return figures.group_curves(rows)


def _sample_grid(
    path: Path,
    settings: EvaluationSettings,
    student: Candidate,
    few: Candidate | None,
    denoiser: Any,
    targets: Targets,
) -> None:
    part = targets.take(torch.arange(min(settings.grid_samples, len(targets))))
    columns: dict[str, Tensor] = {"noise": part.noise}
    for candidate in [c for c in (few, student) if c is not None]:
        title = f"{candidate.label}\nnfe {candidate.nfe}, depth {candidate.depth}"
        with torch.inference_mode():
            columns[title] = candidate.play(denoiser, part.noise, part.cond, device_of(denoiser)).cpu()
    figures.sample_grid(path, {**columns, "reference": part.end})
