"""A comparison as a terminal table, a CSV file and a Markdown file."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from solverdistill.evaluation.compare import REFERENCE, Row
from solverdistill.support.files import write_atomically

DASH = "-"


class Column(NamedTuple):
    """A column of the tables: its title, the field it shows, how, and which value is best."""

    title: str
    field: str
    show: Callable[[Any], str]
    best: Callable[[list[float]], float] | None = None


def _error(value: float) -> str:
    return f"{value:.4f}" if value == 0 or value >= 1e-3 else f"{value:.1e}"


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}" if math.isfinite(value) else "inf"


COLUMNS: tuple[Column, ...] = (
    Column("nfe", "nfe", str),
    Column("depth", "depth", str),
    Column("RMSE mean", "rmse_mean", _error, min),
    Column("RMSE median", "rmse_median", _error, min),
    Column("RMSE p95", "rmse_p95", _error, min),
    Column("PSNR [dB]", "psnr", _fixed(2), max),
    Column("FD", "frechet", _fixed(3), min),
    Column("time [s]", "seconds", _fixed(2)),
)


def grouped(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Sort rows into groups: students, equal nfe, equal depth, other classical solvers, the reference.

    Equal means equal to a student's; a solver that equals in both, or several students, appears once, by the first
    group that fits. Within a group the smallest mean RMSE comes first.
    """
    students = [row for row in rows if row.kind == "student"]
    nfes, depths = {row.nfe for row in students}, {row.depth for row in students}
    groups: dict[str, list[Row]] = {name: [] for name in ("student", "same nfe", "same depth", "classical", REFERENCE)}
    for row in rows:
        if row.kind in ("student", REFERENCE):
            groups[row.kind].append(row)
        else:
            fits = "same nfe" if row.nfe in nfes else "same depth" if row.depth in depths else "classical"
            groups[fits].append(row)
    return [(name, sorted(group, key=lambda row: row.rmse_mean)) for name, group in groups.items() if group]


def table(rows: Sequence[Row], frechet_label: str = "FD", plain: bool = False) -> Table:
    """A rich table of a comparison, at most 100 columns wide.

    Args:
        rows: Rows as `compare` returns them.
        frechet_label: Full name of the Frechet distance, "FD(<extractor>)", named below the table.
        plain: ASCII without colour, the best values marked by an asterisk; for files and pipes.
    """
    columns, best = _columns(rows), _best(rows)
    caption = (
        f"best of each column {'marked *' if plain else 'in bold'}; RMSE and PSNR against the reference end points"
    )
    if any(column.field == "frechet" for column in columns):
        caption += f"; FD is {frechet_label} against real images"
    result = Table(
        box=box.ASCII2 if plain else box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1)
    )
    result.add_column("solver", justify="left", overflow="ellipsis", max_width=31, no_wrap=True)
    for column in columns:
        result.add_column(Text(column.title), justify="right")  # as text: "[s]" would be markup
    for name, group in grouped(rows):
        if name != REFERENCE:
            result.add_row(Text(name, style="dim italic"), *[""] * len(columns))
        for row in group:
            style = "bold cyan" if row.kind == "student" else ""
            cells = [_cell(row, column, best, plain) for column in columns]
            indent = "" if name == REFERENCE else " "
            result.add_row(Text(indent + row.label, style=style), *cells, end_section=row is group[-1])
    return result


def show(rows: Sequence[Row], console: Console, frechet_label: str = "FD") -> None:
    """Print the table of a comparison to a console, plain where it is not a terminal."""
    console.print(table(rows, frechet_label, plain=not console.is_terminal))


def write_csv(path: str | os.PathLike[str], rows: Sequence[Row]) -> Path:
    """Write rows with all their digits, in their order; a value that does not exist is an empty field."""
    stream = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if getattr(row, name) is None else getattr(row, name) for name in names])
    return write_atomically(path, stream.getvalue())


def read_csv(path: str | os.PathLike[str]) -> list[Row]:
    """Read what `write_csv` wrote."""
    kinds: dict[str, Callable[[str], Any]] = {"label": str, "kind": str, "nfe": int, "depth": int}
    with open(path, encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))

    def parse(line: dict[str, str]) -> dict[str, Any]:
        return {key: kinds.get(key, float)(text) if text else None for key, text in line.items()}

    return [Row(**parse(line)) for line in lines]


def write_markdown(
    path: str | os.PathLike[str], rows: Sequence[Row], frechet_label: str = "FD", title: str | None = None
) -> Path:
    """Write a Markdown table, grouped and rounded as in the terminal, the best value of each column in bold."""
    columns, best = _columns(rows), _best(rows)
    titles = [frechet_label if column.field == "frechet" else column.title for column in columns]
    lines = [f"# {title}", ""] if title else []
    lines += ["| " + " | ".join(["group", "solver", *titles]) + " |"]
    lines += ["|" + "---|" * 2 + "---:|" * len(columns)]
    for name, group in grouped(rows):
        for row in group:
            cells = [_mark(row, column, best, "**{}**") for column in columns]
            lines.append("| " + " | ".join([name, row.label.replace("|", "\\|"), *cells]) + " |")
    lines += ["", "RMSE (per image, data units) and PSNR against the reference end points; best values in bold."]
    return write_atomically(path, "\n".join(lines) + "\n")


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that have a value."""
    return [column for column in COLUMNS if any(getattr(row, column.field) is not None for row in rows)]


def _best(rows: Sequence[Row]) -> dict[str, str]:
    """Best printed value of each column, the reference aside; ties as printed share it."""
    result: dict[str, str] = {}
    for column in COLUMNS:
        values = [getattr(row, column.field) for row in rows if row.kind != REFERENCE]
        values = [value for value in values if value is not None and not math.isnan(value)]
        if column.best is not None and len(values) > 1:
            result[column.field] = column.show(column.best(values))
    return result


def _mark(row: Row, column: Column, best: dict[str, str], pattern: str) -> str:
    value = getattr(row, column.field)
    if value is None:
        return DASH
    text = column.show(value)
    return pattern.format(text) if row.kind != REFERENCE and best.get(column.field) == text else text


def _cell(row: Row, column: Column, best: dict[str, str], plain: bool) -> Text:
    text = _mark(row, column, best, "*{}")
    emphasised = text.startswith("*")
    return Text(text if plain else text.lstrip("*"), style="bold green" if emphasised and not plain else "")
