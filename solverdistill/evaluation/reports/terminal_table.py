"""The table of a comparison in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from solverdistill.evaluation.reports.table_layout import Cell, Column, Layout
from solverdistill.evaluation.rows import REFERENCE

PAIRED = {"RMSE": "RMSE", "PSNR [dB]": "PSNR", "SSIM": "SSIM", "LPIPS": "LPIPS"}  # measured against the reference


def terminal_table(layout: Layout, names: Mapping[str, str], plain: bool = False) -> Table:
    """A rich table.

    Args:
        layout: What it shows.
        names: Full names of the measures "FD" and "KD", told below the table.
        plain: ASCII without colour, the best values marked by an asterisk; for files and pipes.
    """
    caption = _caption(layout, names, plain)
    table = Table(box=box.ASCII2 if plain else box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1))
    every = [line for lines in layout.groups.values() for line in lines]
    # Long names and titles break, numbers do not.
    longest = max(len(line.label) for line in every) + 1
    table.add_column("solver", justify="left", min_width=min(longest, 24), max_width=31)
    for i, column in enumerate(layout.columns):
        width = max(len(_text(line.cells[i], plain)) for line in every)
        table.add_column(Text(_title(column)), justify="right", min_width=width)  # as text: "[s]" would be markup
    for title, lines in layout.groups.items():
        if title != REFERENCE:
            table.add_row(Text(title, style="dim italic"), *[""] * len(layout.columns))
        for line in lines:
            student = line.kind == "student"
            mark = "" if title == REFERENCE else "> " if plain and student and not layout.roles else " "
            cells = [_text(cell, plain) for cell in line.cells]
            label = Text(mark + line.label, style="bold cyan" if student else "")
            table.add_row(label, *cells, end_section=line is lines[-1])
    return table


def _title(column: Column) -> str:
    """A narrow title; a mean goes without saying."""
    title = f"{column.measure} {column.part}".strip().removesuffix(" mean")
    return title.replace("precision", "prec").replace("x 1000", "x1e3")


def _caption(layout: Layout, names: Mapping[str, str], plain: bool) -> str:
    measures = list(dict.fromkeys(column.measure for column in layout.columns))
    paired = ", ".join(PAIRED[measure] for measure in measures if measure in PAIRED)
    parts = [f"best of {layout.best_of} {'marked *' if plain else 'in bold'}", f"{paired} against the reference"]
    parts += [f"{measure} is {names[measure]}" for measure in measures if names.get(measure, measure) != measure]
    return "; ".join(parts)


def _text(cell: Cell, plain: bool) -> Text:
    if plain:
        return Text(f"*{cell.text}" if cell.best else cell.text)
    return Text(cell.text, style="bold green" if cell.best else "")
