"""The fit benchmark as a figure: held-out error against evaluations and against seconds, a curve per fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solverdistill.evaluation.reports.figures import COLOURS, DPI, FAINT, INK, STUDENT

from .fits_report import curve
from .recipes import RECIPES
from .records import CLASSICAL


def draw(path: Path, runs: Sequence[Any]) -> None:
    """Draw the curves of the first seed: a row per student and cost, evaluations on the left, seconds on the right.

    Args:
        path: PNG file to write.
        runs: `fits.FitRun`s.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = [run for run in runs if run.recipe != CLASSICAL and run.job.seed == 0]
    panels = sorted({(run.job.solver, run.job.nfe) for run in chosen})
    figure = Figure(figsize=(9.6, 2.7 * max(1, len(panels)) + 0.6), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(panels)), 2, squeeze=False)
    for (solver, nfe), row in zip(panels, axes, strict=False):
        shown = [run for run in chosen if (run.job.solver, run.job.nfe) == (solver, nfe)]
        for run in shown:
            points = [point for point in curve(run.record.history) if point[1]]  # before a race nothing is measured
            for ax, column in ((row[0], 1), (row[1], 2)):
                ax.plot([point[column] for point in points], [point[0] for point in points], **_style(run.recipe))
        row[0].set_ylabel(f"{solver}, nfe {nfe}\nheld-out RMSE", fontsize=9, color=INK)
        for ax in row:
            _format(ax)
    axes[-1][0].set_xlabel("network evaluations", fontsize=9, color=INK)
    axes[-1][1].set_xlabel("seconds", fontsize=9, color=INK)
    names = {RECIPES[run.recipe].title: run.recipe for run in chosen}
    lines = [axes[0][0].plot([], [], label=title, **_style(name))[0] for title, name in names.items()]
    figure.legend(handles=lines, loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    figure.savefig(path, format="png", dpi=DPI)


def _format(ax: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, which="major", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", labelsize=8, color=FAINT, labelcolor=INK, length=3)
    ax.spines[["top", "right"]].set_visible(False)


def _style(recipe: str) -> dict[str, Any]:
    """Red for the default, dashed for a paper's recipe, a colour of its own for every other fit."""
    if recipe == "default":
        return {"color": STUDENT, "linewidth": 2.0, "zorder": 3}
    if RECIPES[recipe].long:
        return {"color": INK, "linewidth": 1.4, "linestyle": "dashed"}
    others = [name for name, one in RECIPES.items() if name != "default" and not one.long]
    return {"color": COLOURS[others.index(recipe) % len(COLOURS)], "linewidth": 1.4}
