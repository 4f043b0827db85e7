"""The family benchmark as a figure: error against evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solverdistill.evaluation.reports.figures import COLOURS, DPI, FAINT, INK, STUDENT

from .records import CLASSICAL, Record

# One colour per paper, one marker per student of the same paper.
PAPERS = ("bespoke", "dode", "gas", "dss", "epd", "bns", "ld3", "s4s")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(path: Path, records: Sequence[Record]) -> None:
    """Draw RMSE after training against nfe: a line for each student, the best classical solver of each nfe dashed.

    Args:
        path: PNG file to write.
        records: All lines of the benchmark.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    figure = Figure(figsize=(8.2, 5.0), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.1, 0.11, 0.62, 0.85))
    lines = _lines(records)
    for label, line, style in lines:
        ax.plot(*zip(*sorted(line), strict=True), label=label, **style)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("evaluations of the network per sample (nfe)", fontsize=9.5, color=INK)
    ax.set_ylabel("RMSE against the reference (mean per image)", fontsize=9.5, color=INK)
    ax.grid(True, which="major", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", labelsize=8.5, color=FAINT, labelcolor=INK, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    if lines:
        ax.legend(frameon=False, fontsize=8.5, handlelength=2.8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(path, format="png", dpi=DPI)


def _lines(records: Sequence[Record]) -> list[tuple[str, list[tuple[int, float]], dict[str, Any]]]:
    """Label, points and style of every line, in the order in which they end: the worst first, as in the figure."""
    lines: dict[str, list[tuple[int, float]]] = {}
    best: dict[int, float] = {}
    for record in records:
        if record.kind == CLASSICAL:
            best[record.nfe] = min(record.rmse_mean, best.get(record.nfe, record.rmse_mean))
        else:
            lines.setdefault(record.solver, []).append((record.nfe, record.rmse_mean))
    styles = {name: _style(name, sorted(lines)) for name in lines}
    if best:
        lines["best classical"] = list(best.items())
        styles["best classical"] = {"color": INK, "linestyle": "dashed", "linewidth": 1.6, "zorder": 1}
    names = sorted(lines, key=lambda name: max(lines[name])[1], reverse=True)
    return [(name, lines[name], styles[name]) for name in names]


def _style(name: str, names: Sequence[str]) -> dict[str, Any]:
    """The paper's colour and a marker of its own; a student of no listed paper is red."""
    paper = next((paper for paper in PAPERS if name.startswith(paper)), None)
    colour = STUDENT if paper is None else COLOURS[PAPERS.index(paper)]
    siblings = [other for other in names if paper and other.startswith(paper)]
    marker = MARKERS[siblings.index(name) % len(MARKERS)] if siblings else "h"
    return {"color": colour, "linewidth": 1.4, "marker": marker, "markersize": 6, "markeredgecolor": "white"}
