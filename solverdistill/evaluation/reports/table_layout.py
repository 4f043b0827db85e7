"""The table of a comparison before it is drawn: which columns, which groups of rows, and which values are best.

Terminal, Markdown and HTML draw the same layout. `by_role` is that of one student, beside the classical solvers of its
nfe and of its depth; `by_nfe` is that of several costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from solverdistill.evaluation.rows import REFERENCE, Row

DASH = "-"
COARSE = " (measured too coarsely)"


class Column(NamedTuple):
    """A column: the measure it belongs to, what of it, the field of `Row`, how it is shown, and which value is best."""

    measure: str
    part: str
    field: str
    show: Callable[[Any], str]
    best: Callable[[list[float]], float] | None = None


class Cell(NamedTuple):
    """A value as text, and whether it is the best."""

    text: str
    best: bool


class Line(NamedTuple):
    """A solver's line."""

    label: str
    kind: str
    cells: list[Cell]


class Layout(NamedTuple):
    """Columns that have a value, and the lines of every group by its title.

    `yardstick` says how exact the reference is.

    The best values are those of `best_of`, "each column" or "every nfe". Where groups are roles, their titles tell
    who is a student; elsewhere a student's line needs a mark.
    """

    columns: list[Column]
    groups: dict[str, list[Line]]
    best_of: str
    roles: bool
    yardstick: str


def _error(value: float) -> str:
    return f"{value:.4f}" if value == 0 or value >= 1e-3 else f"{value:.1e}"


def _fixed(digits: int, factor: float = 1.0) -> Callable[[float], str]:
    return lambda value: f"{value * factor:.{digits}f}" if math.isfinite(value) else "inf"


COLUMNS: tuple[Column, ...] = (
    Column("nfe", "", "nfe", str),
    Column("depth", "", "depth", str),
    Column("RMSE", "mean", "rmse_mean", _error, min),
    Column("RMSE", "median", "rmse_median", _error, min),
    Column("RMSE", "p95", "rmse_p95", _error, min),
    Column("PSNR [dB]", "mean", "psnr", _fixed(2), max),
    Column("PSNR [dB]", "median", "psnr_median", _fixed(2), max),
    Column("PSNR [dB]", "p5", "psnr_p05", _fixed(2), max),
    Column("SSIM", "mean", "ssim", _fixed(4), max),
    Column("SSIM", "median", "ssim_median", _fixed(4), max),
    Column("SSIM", "p5", "ssim_p05", _fixed(4), max),
    Column("LPIPS", "mean", "lpips", _error, min),
    Column("LPIPS", "median", "lpips_median", _error, min),
    Column("LPIPS", "p95", "lpips_p95", _error, min),
    Column("FD", "", "frechet", _fixed(3), min),
    Column("KD", "x 1000", "kernel", _fixed(2, 1000.0), min),
    Column("precision", "", "precision", _fixed(3), max),
    Column("recall", "", "recall", _fixed(3), max),
    Column("time [s]", "", "seconds", _fixed(2)),
)
ALL = tuple(column.field for column in COLUMNS)
OF_ONE_STUDENT = ("nfe", "depth", "rmse_mean", "rmse_median", "rmse_p95", "psnr", "frechet", "seconds")
# What fits a terminal where all is measured.
NARROW = ("nfe", "depth", "rmse_mean", "rmse_p95", "psnr", "ssim", "lpips", "frechet", "kernel", "precision", "recall")


def by_role(rows: Sequence[Row], fields: Sequence[str] = OF_ONE_STUDENT) -> Layout:
    """Group rows: students, equal nfe, equal depth, other classical solvers, the reference.

    Equal means equal to a student's; a solver that equals in both, or several students, appears once, by the first
    group that fits. Within a group the smallest mean RMSE comes first; the best are those of the whole table.
    """
    students = [row for row in rows if row.kind == "student"]
    nfes, depths = {row.nfe for row in students}, {row.depth for row in students}
    groups: dict[str, list[Row]] = {name: [] for name in ("student", "same nfe", "same depth", "classical", REFERENCE)}
    for row in sorted(rows, key=lambda row: row.order):
        cost = "same nfe" if row.nfe in nfes else "same depth" if row.depth in depths else "classical"
        groups[cost if row.kind == "classical" else row.kind].append(row)
    columns = _columns(rows, fields)
    best = _best(rows, columns)
    lines = {title: _lines(group, columns, best) for title, group in groups.items() if group}
    return Layout(columns, lines, best_of="each column", roles=True, yardstick=yardstick(rows))


def by_nfe(rows: Sequence[Row], fields: Sequence[str] = ALL) -> Layout:
    """Group rows by nfe, students and classical solvers together, the smallest mean RMSE first; the reference last."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.nfe is None, row.nfe or 0, row.order)):
        groups.setdefault(REFERENCE if row.kind == REFERENCE else f"nfe {row.nfe}", []).append(row)
    columns = _columns(rows, fields)
    lines = {title: _lines(group, columns, _best(group, columns)) for title, group in groups.items()}
    return Layout(columns, lines, best_of="every nfe", roles=False, yardstick=yardstick(rows))


def yardstick(rows: Sequence[Row]) -> str:
    """How exact the reference is, and which students it is too coarse for, in a clause."""
    error = next((row.reference_error for row in rows if row.reference_error is not None), None)
    if error is None:
        return "its error was not measured"
    coarse = ", ".join(dict.fromkeys(row.label for row in rows if row.coarse))
    said = f"RMSE {_error(error)} from the exact solution"
    return f"{said}, too near to that of {coarse}: take a finer one, targets.reference.steps" if coarse else said


def titles(columns: Sequence[Column], names: Mapping[str, str]) -> list[str]:
    """Full titles, with the distances under the names they have on their extractor; a lone mean is not called so."""
    measures = [column.measure for column in columns]
    lone = [column.part == "mean" and measures.count(column.measure) == 1 for column in columns]
    parts = ["" if alone else column.part for alone, column in zip(lone, columns, strict=True)]
    return [f"{names.get(m, m)} {part}".strip() for m, part in zip(measures, parts, strict=True)]


def _columns(rows: Sequence[Row], fields: Sequence[str]) -> list[Column]:
    """The wanted columns that have a value."""
    wanted = [column for column in COLUMNS if column.field in fields]
    return [column for column in wanted if any(getattr(row, column.field) is not None for row in rows)]


def _best(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, str]:
    """Best printed value of each column, the reference aside; ties as printed share it."""
    best: dict[str, str] = {}
    for column in columns:
        values = [getattr(row, column.field) for row in rows if row.kind != REFERENCE]
        values = [value for value in values if value is not None and not math.isnan(value)]
        if column.best is not None and len(values) > 1:
            best[column.field] = column.show(column.best(values))
    return best


def _lines(rows: Sequence[Row], columns: Sequence[Column], best: Mapping[str, str]) -> list[Line]:
    return [
        Line(f"{row.label}{COARSE * row.coarse}", row.kind, [_cell(row, column, best) for column in columns])
        for row in rows
    ]


def _cell(row: Row, column: Column, best: Mapping[str, str]) -> Cell:
    value = getattr(row, column.field)
    text = DASH if value is None else column.show(value)
    return Cell(text, value is not None and row.kind != REFERENCE and best.get(column.field) == text)
