"""What a run prints while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from solverdistill.fits.protocol import Fit, FitPlan, Progress
from solverdistill.fits.report import FitReport
from solverdistill.references.serving import TargetData
from solverdistill.support.progress import FitProgress, console
from solverdistill.training.configuration import Run
from solverdistill.training.costs import COMPARISON, Costs, amount, expect, in_words
from solverdistill.training.stages import Watcher


class Screen(Watcher):
    """Shows a bar for every fit, a line of what it reached, and before it what is to go at most.

    Args:
        costs: What the run was expected to cost.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs

    def targets(self, report: FitReport) -> None:
        console().print(report.summary())

    def fitting(self, name: str, fit: Fit) -> AbstractContextManager[Progress | None]:
        if self._costs.timed:
            console().print(f"to go, at most: {self._costs.since(name)}")
        return FitProgress(name, not fit.resumes)  # a trainer has a bar of its own

    def fitted(self, fit: Fit, report: FitReport) -> None:
        console().print(report.summary())


def say_hello(run: Run) -> None:
    """One line that says what is about to happen."""
    family, settings = run.student.family, run.targets
    reference = f"{settings.reference.solver}, {settings.reference.steps} steps"
    count = sum(value.numel() for value in family.init(0).values())
    who = " or ".join(f"[bold]{student.family.name}[/bold]" for student in (run.student, *run.rivals))
    size = "" if run.rivals else f"{count} numbers, "
    if run.config.get("budget") is not None:
        of = run.targets
        fits = ", ".join(f"{name} ({in_short(fit)})" for name, fit in run.fits.items())
        console().print(
            f"budget {run.config['budget']}: {run.config['planned_evaluations']:,} evaluations; planned: "
            f"{of.train_samples} + {of.validation_samples} references of {of.reference.steps} steps; {fits}"
        )
    console().print(
        f"{who} for [bold]{run.teacher.name}[/bold]: {size}nfe {family.nfe}, "
        f"depth {family.depth}, {family.steps} steps on the {family.path.name} path; reference "
        f"{'measures itself' if settings.measure else reference}; fits: {', '.join(run.fits)}"
    )


def in_short(fit: Fit) -> str:
    """The sizes of a fit that a budget changes."""
    names = ("first", "survivors", "starts", "iterations", "samples", "evaluations", "placements")
    known = ((name, getattr(fit, name, None)) for name in names)
    return ", ".join(f"{name} {value:,}" for name, value in known if type(value) is int)


def say_costs(run: Run, plan: FitPlan, data: TargetData, comparison: int | None = None) -> Costs:
    """Show what the run will cost at most, a line for each kind of work.

    Args:
        run: The run.
        plan: Its fits.
        data: Its targets, before they are made.
        comparison: Evaluations of the comparison at its end, beside its references; None for no comparison.
    """
    from rich import box
    from rich.table import Table

    costs = expect(run, plan, data, comparison)
    if not costs.timed:
        console().print(f"at most {costs}, too few to time")
        return costs
    screen = console()
    kind = box.SIMPLE_HEAD if screen.is_terminal else box.ASCII2
    table = Table("what it costs, at most", "evaluations", "time", box=kind)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in (*costs.parts, costs.total):
        table.add_row(part.name, f"{part.evaluations:,}", in_words(part.seconds))
    screen.print(table)
    if costs.adaptive:
        console().print("of an adaptive reference, at least: it chooses its steps as it goes")
    return costs


def say_spent(costs: Costs, reports: Sequence[FitReport]) -> None:
    """Show what references and fits took, beside what they were expected to take at most."""
    evaluations, seconds = (sum(values) for values in zip(*((r.evaluations, r.seconds) for r in reports), strict=True))
    spent = f"references and fits took {amount(evaluations, seconds)}"
    console().print(f"{spent}; expected, at most: {costs.until(COMPARISON)}" if costs.timed else spent)
