"""A student beside every classical solver of the same nfe and of the same depth: the rows, and how they are shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.evaluation.candidates import Candidate, classical_candidates
from solverdistill.evaluation.compare import compare, device_of
from solverdistill.evaluation.lower_starts import best_from_lower
from solverdistill.evaluation.reports import figures
from solverdistill.evaluation.reports.html_report import html_table
from solverdistill.evaluation.reports.table_layout import Layout, by_role
from solverdistill.evaluation.rows import Row
from solverdistill.objectives import features
from solverdistill.programs.program import SolverProgram
from solverdistill.references.targets import Targets

FROM_LOWER = "best begun lower"
CURVE_NFE = (4, 6, 8, 10)
CURVE_SAMPLES = 16


class Subject(NamedTuple):
    """What a comparison is about.

    Args:
        student: The student.
        few: The best classical solver of the student's nfe; None where there is none.
        lower: Classical solvers of its cost that begin at a lower noise level.
        teacher: Gives path, noise range and feature extractor.
        denoiser: The teacher, possibly guided.
        targets: Held-out samples with their reference end points.
        batch_size: Samples per network call and stage.
    """

    student: Candidate
    few: Candidate | None
    lower: list[Candidate]
    teacher: Teacher
    denoiser: Any
    targets: Targets
    batch_size: int

    @property
    def has_images(self) -> bool:
        """Whether samples can be drawn as pictures."""
        return len(self.teacher.shape) == 3 and self.teacher.shape[0] in (1, 3)


class Comparison(list[Row]):
    """Rows of a comparison, the student's first, then classical solvers, then the reference's own.

    A list of dataclasses, of which `pandas.DataFrame` makes a table; in a notebook it shows itself as a table with
    samples, and printed as the table of a terminal.

    Args:
        rows: The rows.
        subject: What they are about.
        names: Full names of the measures "FD" and "KD".
    """

    def __init__(self, rows: Iterable[Row], subject: Subject, names: Mapping[str, str]) -> None:
        super().__init__(rows)
        self.subject, self.names = subject, dict(names)

    @property
    def layout(self) -> Layout:
        """The table before it is drawn."""
        return by_role(self)

    def samples(self, count: int = 10) -> Any:
        """A figure of samples: noise, the best classical solver of the same nfe, the student, the reference.

        Args:
            count: Rows of the figure.
        """
        subject = self.subject
        part = subject.targets.take(torch.arange(min(count, len(subject.targets))))
        columns: dict[str, Tensor] = {figures.NOISE: part.noise}
        for candidate in (subject.few, subject.student):
            if candidate is None:
                continue
            title = f"{candidate.label}\nnfe {candidate.nfe}, depth {candidate.depth}"
            with torch.inference_mode():
                played = candidate.play(subject.denoiser, part.noise, part.cond, device_of(subject.denoiser))
            columns[title] = played.cpu()
        return figures.draw_samples({**columns, "reference": part.end})

    def errors(self, nfe: Iterable[int] = CURVE_NFE, count: int = CURVE_SAMPLES) -> Any:
        """A figure of error against nfe and depth, with classical solvers over a range of costs.

        Args:
            nfe: Costs at which classical solvers are drawn.
            count: Samples used for these.
        """
        curves = {**_curves(self.subject, nfe, count), FROM_LOWER: self._best_from_lower()}
        return figures.draw_errors(curves, [self[0]])

    def figure(self, count: int = 10) -> Any:
        """The figure of samples where they are images, otherwise that of errors."""
        return self.samples(count) if self.subject.has_images else self.errors()

    def _best_from_lower(self) -> list[Row]:
        """The best of the rows begun lower at each nfe."""
        names = {(candidate.label, candidate.nfe) for candidate in self.subject.lower}
        best: dict[int | None, Row] = {}
        for row in sorted((row for row in self if (row.label, row.nfe) in names), key=lambda row: row.order):
            best.setdefault(row.nfe, row)
        return list(best.values())

    def __repr__(self) -> str:
        from rich.console import Console

        from solverdistill.evaluation.reports.terminal_table import print_table

        screen = Console(file=io.StringIO(), width=120, highlight=False, force_jupyter=False, force_terminal=False)
        with screen.capture() as captured:
            print_table(screen, self.layout, self.names)
        return captured.get().rstrip()

    def _repr_html_(self) -> str:
        drawn = io.BytesIO()
        self.figure().savefig(drawn, format="png", dpi=figures.DPI)
        picture = base64.b64encode(drawn.getvalue()).decode("ascii")
        image = f'<img alt="samples" style="max-width: 100%" src="data:image/png;base64,{picture}">'
        return f"{html_table(self.layout, self.names)}{image}"


def compare_with_classical(
    label: str,
    program: SolverProgram,
    teacher: Teacher,
    denoiser: Any,
    targets: Targets,
    batch_size: int = 128,
    reference_error: float | None = None,
    short: bool = False,
) -> Comparison:
    """Compare a student with the classical solvers of the same nfe and of the same depth.

    Args:
        label: The student's name.
        program: The student.
        teacher: Gives path, noise range and feature extractor.
        denoiser: The teacher, possibly guided.
        targets: Held-out samples with their reference end points.
        batch_size: Samples per network call and stage.
        reference_error: RMSE of the reference from the exact solution; None where it was not measured.
        short: Compare with those of the short list alone (`candidates.CLASSICAL`), in place of all.
    """
    student = Candidate.of(label, program)
    noise, cond, end = targets.batch.noise, targets.batch.cond, targets.batch.end
    solvers, costs = (teacher.path, teacher.noise_range), (student.nfe, student.depth)
    lower = best_from_lower(*solvers, denoiser, noise, cond, end, *costs, batch_size, short)
    classical = [*classical_candidates(*solvers, *costs, short=short).candidates, *lower]
    extractor = features.for_teacher(teacher)
    network, real = (extractor.module, extractor.real) if extractor else (None, None)
    rows = compare([student, *classical], denoiser, noise, cond, end, batch_size, network, real)
    rows = [replace(row, reference_error=reference_error) for row in rows]
    equal = [row for row in rows if row.kind == "classical" and row.nfe == student.nfe]
    best = min(equal, key=lambda row: row.order).label if equal else None
    few = next((c for c in classical if (c.label, c.nfe) == (best, student.nfe)), None)
    subject = Subject(student, few, lower, teacher, denoiser, targets, batch_size)
    return Comparison(rows, subject, {"FD": f"FD({extractor.name})"} if extractor else {})


def _curves(subject: Subject, costs: Iterable[int], count: int) -> dict[str, list[Row]]:
    """Classical solvers over a range of costs, on fewer samples."""
    teacher, part = subject.teacher, subject.targets.take(torch.arange(min(count, len(subject.targets))))
    candidates: dict[str, Candidate] = {}
    for nfe in costs:
        for candidate in classical_candidates(teacher.path, teacher.noise_range, nfe, short=True).candidates:
            candidates.setdefault(f"{candidate.label} {candidate.nfe}", candidate)
    rows = compare([*candidates.values()], subject.denoiser, part.noise, part.cond, part.end, subject.batch_size)
    return figures.group_curves(rows)
