"""Error against the budget of a run as a figure: a panel per teacher and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from solverdistill.evaluation.reports.figures import COLOURS, DPI, FAINT, INK, STUDENT

from .default import CLASSICALS, Line
from .published import RECIPES


def draw(path: Path, lines: Sequence[Line], floors: Mapping[tuple[str, int], float]) -> None:
    """Draw the mean error of every method against its budget, with the range of its seeds.

    Args:
        path: PNG file to write.
        lines: All runs; those with a budget are drawn.
        floors: Smallest errors that are known, by teacher and nfe.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    budgets = [line for line in lines if line.budget is not None]
    teachers, costs = list(dict.fromkeys(line.teacher for line in budgets)), sorted({line.nfe for line in budgets})
    size = 3.2 * max(1, len(costs)) + 0.4, 2.7 * max(1, len(teachers)) + 0.8
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, len(teachers)), max(1, len(costs)), squeeze=False, sharex=True)
    drawn: dict[str, Any] = {}
    for teacher, row in zip(teachers, axes, strict=False):
        for nfe, ax in zip(costs, row, strict=False):
            own = [line for line in lines if (line.teacher, line.nfe) == (teacher, nfe)]
            drawn |= _panel(ax, own, floors.get((teacher, nfe)))
            ax.set_title(f"{teacher}, nfe {nfe}", fontsize=9.5, color=INK)
        row[0].set_ylabel("RMSE against the exact solve", fontsize=9, color=INK)
    for ax in axes[-1]:
        ax.set_xlabel("budget, references included (evaluations)", fontsize=9, color=INK)
    figure.legend(drawn.values(), drawn, loc="outside upper center", ncols=5, frameon=False, fontsize=8.5)
    figure.savefig(path, format="png", dpi=DPI)


def _panel(ax: Any, lines: Sequence[Line], floor: float | None) -> dict[str, Any]:
    """One panel; gives what was drawn, by its label."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawn: dict[str, Any] = {}
    methods = sorted({line.method for line in lines if line.budget is not None})
    for method in methods:
        own = [line for line in lines if line.method == method and line.budget is not None]
        points = {budget: [line.rmse for line in own if line.budget == budget] for budget in {x.budget for x in own}}
        budgets = sorted(points)
        style, below = _style(method, methods), [min(points[budget]) for budget in budgets]
        drawn[method] = ax.plot(budgets, [mean(points[budget]) for budget in budgets], **style)[0]
        ax.fill_between(budgets, below, [max(points[budget]) for budget in budgets], color=style["color"], alpha=0.15)
    best = [line.rmse for line in lines if line.method in CLASSICALS]
    if best:
        drawn["best classical"] = ax.axhline(min(best), color=INK, linestyle="dashed", linewidth=1.2)
    if floor is not None:
        drawn["floor"] = ax.axhline(floor, color=INK, linestyle="dotted", linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, which="major", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", labelsize=8, color=FAINT, labelcolor=INK, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    return drawn


def _style(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """Red for the default, a colour of its own for every other method."""
    known = [*RECIPES, *sorted(set(methods) - set(RECIPES))]
    colour = COLOURS[known.index(method) % len(COLOURS)] if method in RECIPES else STUDENT
    return {"color": colour, "linewidth": 1.6, "marker": "o", "markersize": 4}
