"""What a run prints while it goes on."""

from __future__ import annotations

from contextlib import AbstractContextManager

from solverdistill.fits.protocol import Fit, Progress
from solverdistill.fits.report import FitReport
from solverdistill.support.progress import FitProgress, console
from solverdistill.training.configuration import Run
from solverdistill.training.stages import Watcher


class Screen(Watcher):
    """Shows a bar for every fit, and a line of what it reached."""

    def targets(self, report: FitReport) -> None:
        console().print(report.summary())

    def fitting(self, name: str, fit: Fit) -> AbstractContextManager[Progress | None]:
        return FitProgress(name, not fit.resumes)  # a trainer has a bar of its own

    def fitted(self, fit: Fit, report: FitReport) -> None:
        console().print(report.summary())


def say_hello(run: Run) -> None:
    """One line that says what is about to happen."""
    family, settings = run.student.family, run.targets
    reference = f"{settings.reference.solver}, {settings.reference.steps} steps"
    count = sum(value.numel() for value in family.init(0).values())
    console().print(
        f"[bold]{family.name}[/bold] for [bold]{run.teacher.name}[/bold]: {count} numbers, nfe {family.nfe}, "
        f"depth {family.depth}, {family.steps} steps on the {family.path.name} path; reference "
        f"{'measures itself' if settings.measure else reference}; fits: {', '.join(run.fits)}"
    )
