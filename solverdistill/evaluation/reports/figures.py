"""Figures of an evaluation: samples side by side, and error against cost.

matplotlib is imported inside the functions and drawn on without a display; files appear complete or not at all.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from solverdistill.evaluation.candidates import AFS_SUFFIX
from solverdistill.evaluation.pixels import to_pixels
from solverdistill.evaluation.rows import Row

DPI = 150
INK, FAINT = "#222222", "#d9d9d9"
STUDENT = "#d62728"
# Okabe and Ito's colours, told apart by colour-blind readers, without the red that marks the student.
COLOURS = ("#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#8C6D31", "#666666", "#3B3B98")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)))
MARKERS = ("o", "s", "^")
STARS = (("*", 15), ("D", 9), ("P", 11), ("X", 11))
NOISE = "noise"


def draw_samples(columns: Mapping[str, Tensor], cell: int = 120) -> Any:
    """Draw samples side by side, a row for each sample and a column for each solver.

    Every pixel of a sample becomes a square of whole pixels of the figure, so small images stay crisp.

    Args:
        columns: Title -> images in [-1, 1], from left to right; a title may have several lines. The column "noise" is
            unit normal and shown over [-2.5, 2.5]. Shape of each: (samples, 1 or 3, height, width).
        cell: Smallest height of a sample in the figure, in pixels.
    Returns:
        A matplotlib figure, which `save` writes.
    Raises:
        ValueError: there is no column, or the columns are not images of one shape.
    """
    shapes = {tuple(images.shape) for images in columns.values()}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"columns must be images of one shape (samples, 1 or 3, height, width), not {sorted(shapes)}")
    samples, _, height, width = shape
    scale = math.ceil(cell / height)
    titles = [_wrap(title, width * scale) for title in columns]
    gap, top = 6, 16 + 20 * max(title.count("\n") + 1 for title in titles)
    size = (len(columns) * (width * scale + gap) + gap, samples * (height * scale + gap) + gap + top)
    figure = _figure(size[0] / DPI, size[1] / DPI)
    for i, (title, images) in enumerate(columns.items()):
        x = gap + i * (width * scale + gap)
        for row, image in enumerate(_pixels(images / 2.5 if title == NOISE else images, scale)):
            y = size[1] - top - (row + 1) * (height * scale + gap) + gap
            figure.figimage(image, xo=x, yo=y, origin="upper", resize=False)
        middle = (x + width * scale / 2) / size[0]
        figure.text(middle, 1 - (top - 8) / size[1], titles[i], ha="center", va="bottom", fontsize=8, color=INK)
    return figure


def group_curves(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Gather the rows of each classical solver over all costs into a curve, with and without analytical first step."""
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "classical":
            curves.setdefault(row.label.replace(AFS_SUFFIX, ""), []).append(row)
    return curves


def best_curves(curves: Mapping[str, Sequence[Row]], count: int) -> dict[str, list[Row]]:
    """The curves of least RMSE by the mean of their ranks at each nfe, in their order, to keep a figure readable."""
    ranks: dict[str, list[int]] = {label: [] for label in curves}
    for nfe in {row.nfe for curve in curves.values() for row in curve}:
        here = [(row.order, label) for label, curve in curves.items() for row in curve if row.nfe == nfe]
        for rank, (_, label) in enumerate(sorted(here)):
            ranks[label].append(rank)
    mean = {label: sum(places) / len(places) for label, places in ranks.items() if places}
    chosen = sorted(mean, key=lambda label: mean[label])[:count]
    return {label: list(curve) for label, curve in curves.items() if label in chosen}


def draw_errors(
    curves: Mapping[str, Sequence[Row]],
    student_points: Sequence[Row],
    value: str = "rmse_mean",
    title: str = "RMSE against the reference (mean per image)",
) -> Any:
    """Draw an error against evaluations and against sequential network calls, on a logarithmic axis.

    Args:
        curves: Solver -> its rows at several costs, drawn as a line; see `group_curves`.
        student_points: Rows of students; those of one label share a red marker, joined by a line, and are named first.
        value: Field of the rows that is drawn, where it is not None.
        title: Title of its axis.
    Returns:
        A matplotlib figure, which `save` writes.
    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    curves = {label: shown for label, curve in curves.items() if (shown := _having(curve, value))}
    students = _by_label(_having(student_points, value))
    rows = [row for curve in (*curves.values(), *students.values()) for row in curve]
    if not rows:
        raise ValueError("there are neither curves nor student points to draw")
    names = 0.65 + 0.073 * max(len(label) for label in (*curves, *students))
    width = 8.2 + names
    figure = _figure(width, 4.6)
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06})
    figure.subplots_adjust(left=0.78 / width, right=1 - names / width, top=0.96, bottom=0.125)
    costs_of = {"nfe": "evaluations of the network (nfe)", "depth": "sequential network calls (depth)"}
    # Both axes span the same costs, so that a student's gain in depth is seen as a shift to the left.
    costs = [cost for row in rows for cost in (row.nfe, row.depth) if cost is not None]
    for ax, (cost, label) in zip(axes, costs_of.items(), strict=True):
        _draw_panel(ax, curves, students, cost, value)
        ax.set_xlabel(label, fontsize=9.5, color=INK)
        ax.set_xlim(min(costs) - 0.4, max(costs) + 0.4)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(title, fontsize=9.5, color=INK)
    _draw_legend(axes[1], curves, list(students), value)
    return figure


def _having(rows: Sequence[Row], value: str) -> list[Row]:
    """Rows whose value can be drawn on a logarithmic axis."""
    return [row for row in rows if getattr(row, value) is not None and getattr(row, value) > 0]


def _by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row)
    return found


def _draw_panel(
    ax: Any, curves: Mapping[str, Sequence[Row]], students: Mapping[str, Sequence[Row]], cost: str, value: str
) -> None:
    """Draw every curve and student over one measure of cost."""
    for i, curve in enumerate(curves.values()):
        points = sorted((getattr(row, cost), getattr(row, value)) for row in curve if getattr(row, cost) is not None)
        if points:
            ax.plot(*zip(*points, strict=True), **_style(i))
    for i, rows in enumerate(students.values()):
        points = sorted((getattr(row, cost), getattr(row, value)) for row in rows)
        ax.plot(*zip(*points, strict=True), color=STUDENT, linewidth=1.2, zorder=4)
        ax.plot(*zip(*points, strict=True), zorder=5, **_student_style(i))
    ax.margins(y=0.12)
    ax.grid(True, which="major", color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", labelsize=8.5, color=FAINT, labelcolor=INK, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#888888")


def _draw_legend(ax: Any, curves: Mapping[str, Sequence[Row]], students: Sequence[str], value: str) -> None:
    """Name students and curves outside the axes, the curves in the order in which they end."""
    from matplotlib.lines import Line2D

    last = {label: getattr(max(curve, key=lambda r: r.nfe or 0), value) for label, curve in curves.items() if curve}
    styles = {label: _style(i) for i, label in enumerate(curves)}
    labels = sorted(last, key=lambda label: last[label], reverse=True)
    stars = [Line2D([], [], **_student_style(i)) for i in range(len(students))]
    lines = [Line2D([], [], **styles[label]) for label in labels]
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "borderaxespad": 0.0}
    legend = ax.legend([*stars, *lines], [*students, *labels], frameon=False, fontsize=8.5, handlelength=2.8, **place)
    for text in legend.get_texts()[: len(students)]:
        text.set(color=STUDENT, fontweight="bold")


def _style(i: int) -> dict[str, Any]:
    """Line style of curve i: a colour first, then a dash with its marker."""
    colour, again = COLOURS[i % len(COLOURS)], i // len(COLOURS) % len(DASHES)
    line = {"color": colour, "linestyle": DASHES[again], "linewidth": 1.5}
    return {**line, "marker": MARKERS[again], "markersize": 3.6}


def _student_style(i: int) -> dict[str, Any]:
    """Marker of student i."""
    outline = {"markeredgecolor": "white", "markeredgewidth": 0.8, "linestyle": "none"}
    shape, size = STARS[i % len(STARS)]
    return {"color": STUDENT, "marker": shape, "markersize": size, **outline}


def _wrap(title: str, width: int) -> str:
    """Break a title's lines at spaces so that they fit `width` pixels, at some 9 pixels a character."""
    return "\n".join(textwrap.fill(line, max(width // 9, 6), break_long_words=False) for line in title.split("\n"))


def _pixels(images: Tensor, scale: int) -> Any:
    """Images in [-1, 1] as bytes, each pixel repeated. Shape: (samples, height * scale, width * scale, 3)."""
    levels = to_pixels(images.detach().cpu()).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return levels.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2).numpy()


def _figure(width: float, height: float) -> Any:
    """A figure in inches that needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Drawing(Figure):
        """A figure that a notebook shows as it is."""

        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            self.savefig(drawn, format="png", dpi=DPI)
            return drawn.getvalue()

    figure = Drawing(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG under a temporary name beside `path`, then move it into place."""
    target = Path(path)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        temporary = Path(folder) / "figure.png"
        figure.savefig(temporary, format="png", dpi=DPI)
        os.replace(temporary, target)
    return target
