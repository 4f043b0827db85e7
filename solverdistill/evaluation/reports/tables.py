"""The table of an evaluation over several costs: rows grouped by nfe, the best of every group marked.

One layout serves the terminal, Markdown and the HTML report; the CSV file of `report.write_csv` holds all digits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from solverdistill.evaluation.compare import REFERENCE, Row
from solverdistill.support.files import write_atomically

DASH = "-"
Best = Callable[[list[float]], float]


class Column(NamedTuple):
    """A column: the measure it belongs to, what of it, the field of `Row`, how it is shown, and which value is best."""

    measure: str
    part: str
    field: str
    show: Callable[[Any], str]
    best: Best | None = None
    short: bool = False  # whether a terminal shows it


class Cell(NamedTuple):
    """A value as text, and whether it is the best of its group."""

    text: str
    best: bool


class Line(NamedTuple):
    """A solver's line."""

    label: str
    kind: str
    cells: list[Cell]


class Layout(NamedTuple):
    """Columns that have a value, and the lines of every group by its title."""

    columns: list[Column]
    groups: dict[str, list[Line]]


def _error(value: float) -> str:
    return f"{value:.4f}" if value == 0 or value >= 1e-3 else f"{value:.1e}"


def _fixed(digits: int, factor: float = 1.0) -> Callable[[float], str]:
    return lambda value: f"{value * factor:.{digits}f}" if math.isfinite(value) else "inf"


COLUMNS: tuple[Column, ...] = (
    Column("nfe", "", "nfe", str, short=True),
    Column("depth", "", "depth", str, short=True),
    Column("RMSE", "mean", "rmse_mean", _error, min, short=True),
    Column("RMSE", "median", "rmse_median", _error, min),
    Column("RMSE", "p95", "rmse_p95", _error, min, short=True),
    Column("PSNR [dB]", "mean", "psnr", _fixed(2), max, short=True),
    Column("PSNR [dB]", "median", "psnr_median", _fixed(2), max),
    Column("PSNR [dB]", "p5", "psnr_p05", _fixed(2), max),
    Column("SSIM", "mean", "ssim", _fixed(4), max, short=True),
    Column("SSIM", "median", "ssim_median", _fixed(4), max),
    Column("SSIM", "p5", "ssim_p05", _fixed(4), max),
    Column("LPIPS", "mean", "lpips", _error, min, short=True),
    Column("LPIPS", "median", "lpips_median", _error, min),
    Column("LPIPS", "p95", "lpips_p95", _error, min),
    Column("FD", "", "frechet", _fixed(3), min, short=True),
    Column("KD", "x 1000", "kernel", _fixed(2, 1000.0), min, short=True),
    Column("precision", "", "precision", _fixed(3), max, short=True),
    Column("recall", "", "recall", _fixed(3), max, short=True),
    Column("time [s]", "", "seconds", _fixed(2)),
)


def layout(rows: Sequence[Row]) -> Layout:
    """Group rows by nfe, students and classical solvers together, the smallest mean RMSE first; the reference last."""
    columns = [column for column in COLUMNS if any(getattr(row, column.field) is not None for row in rows)]
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.nfe is None, row.nfe or 0, row.rmse_mean)):
        groups.setdefault(REFERENCE if row.kind == REFERENCE else f"nfe {row.nfe}", []).append(row)
    return Layout(columns, {title: _lines(group, columns) for title, group in groups.items()})


def _lines(rows: Sequence[Row], columns: Sequence[Column]) -> list[Line]:
    best: dict[str, str] = {}
    for column in columns:
        values = [getattr(row, column.field) for row in rows if row.kind != REFERENCE]
        values = [value for value in values if value is not None and not math.isnan(value)]
        if column.best is not None and len(values) > 1:
            best[column.field] = column.show(column.best(values))
    return [Line(row.label, row.kind, [_cell(row, column, best) for column in columns]) for row in rows]


def _cell(row: Row, column: Column, best: Mapping[str, str]) -> Cell:
    value = getattr(row, column.field)
    text = DASH if value is None else column.show(value)
    return Cell(text, value is not None and best.get(column.field) == text)


def titles(columns: Sequence[Column], names: Mapping[str, str]) -> list[str]:
    """Full titles, with the distances under the names they have on their extractor."""
    return [f"{names.get(column.measure, column.measure)} {column.part}".strip() for column in columns]


def terminal_table(rows: Sequence[Row], names: Mapping[str, str], plain: bool = False) -> Table:
    """A rich table of the short columns.

    Args:
        rows: Rows of all solvers and costs.
        names: Full names of the measures "FD" and "KD", told below the table.
        plain: ASCII without colour, the best values marked by an asterisk; for files and pipes.
    """
    columns, groups = layout(rows)
    shown = [i for i, column in enumerate(columns) if column.short]
    caption = f"best of every nfe {'marked *' if plain else 'in bold'}; RMSE, PSNR, SSIM, LPIPS against the reference"
    measures = {columns[i].measure for i in shown}
    caption += "".join(f"; {short} is {name}" for short, name in names.items() if short in measures and short != name)
    table = Table(box=box.ASCII2 if plain else box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1))
    table.add_column("solver", justify="left", min_width=20, max_width=31)  # long names break, numbers do not
    for i in shown:
        title = titles([columns[i]], {})[0].replace("precision", "prec").removesuffix(" mean")
        table.add_column(Text(title.replace("KD x 1000", "KD x1e3")), justify="right", no_wrap=True)
    for title, lines in groups.items():
        if title != REFERENCE:
            table.add_row(Text(title, style="dim italic"), *[""] * len(shown))
        for line in lines:
            style = "bold cyan" if line.kind == "student" else ""
            mark = "> " if plain and line.kind == "student" else " "
            cells = [_rich(line.cells[i], plain) for i in shown]
            label = line.label if title == REFERENCE else mark + line.label
            table.add_row(Text(label, style=style), *cells, end_section=line is lines[-1])
    return table


def _rich(cell: Cell, plain: bool) -> Text:
    if plain:
        return Text(f"*{cell.text}" if cell.best else cell.text)
    return Text(cell.text, style="bold green" if cell.best else "")


def write_markdown(
    path: str | os.PathLike[str], rows: Sequence[Row], names: Mapping[str, str], title: str, notes: Sequence[str] = ()
) -> Path:
    """Write all columns as a Markdown table, students in italics, the best of every nfe in bold."""
    columns, groups = layout(rows)
    lines = [f"# {title}", ""]
    lines += ["| " + " | ".join(["solver", *titles(columns, names)]) + " |", "|---|" + "---:|" * len(columns)]
    for group in groups.values():
        for line in group:
            label = line.label.replace("|", "\\|")
            cells = [f"**{cell.text}**" if cell.best else cell.text for cell in line.cells]
            lines.append("| " + " | ".join([f"*{label}*" if line.kind == "student" else label, *cells]) + " |")
    lines += ["", *(f"- {note}" for note in notes)]
    return write_atomically(path, "\n".join(lines) + "\n")
