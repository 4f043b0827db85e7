"""The table of a comparison in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from solverdistill.evaluation.reports.table_layout import Cell, Layout, titles
from solverdistill.evaluation.rows import REFERENCE

LONGEST = 31  # line of a solver's name
WIDEST = 400
PAIRED = {"RMSE": "RMSE", "PSNR [dB]": "PSNR", "SSIM": "SSIM", "LPIPS": "LPIPS"}  # measured against the reference


def print_table(screen: Console, layout: Layout, names: Mapping[str, str]) -> None:
    """Print a comparison: in a terminal at its width, elsewhere plain and as wide as its longest line.

    Args:
        screen: Where it is printed.
        layout: What it shows.
        names: Full names of the measures "FD" and "KD".
    """
    table = terminal_table(layout, names, plain=not screen.is_terminal)
    if not screen.is_terminal:
        unlimited = screen.options.update(width=WIDEST)
        screen.width = max(screen.width, screen.measure(table, options=unlimited).maximum)
    screen.print(table)


def terminal_table(layout: Layout, names: Mapping[str, str], plain: bool = False) -> Table:
    """A rich table.

    Args:
        layout: What it shows.
        names: Full names of the measures "FD" and "KD", told below the table.
        plain: ASCII without colour, the best values marked by an asterisk; for files and pipes.
    """
    caption = escape(_caption(layout, names, plain))  # names of solvers are no markup
    table = Table(box=box.ASCII2 if plain else box.SIMPLE_HEAD, caption=caption, caption_justify="left", padding=(0, 1))
    every = [line for lines in layout.groups.values() for line in lines]
    table.add_column("solver", justify="left", no_wrap=True)
    for i, title in enumerate(titles(layout.columns, {})):  # where space is short, titles break and numbers do not
        width = max(len(_text(line.cells[i], plain)) for line in every)
        short = title.replace("precision", "prec").replace("x 1000", "x1e3")
        table.add_column(Text(short), justify="right", min_width=width)  # as text: "[s]" would be markup
    for title, lines in layout.groups.items():
        if title != REFERENCE:
            table.add_row(Text(title, style="dim italic"), *[""] * len(layout.columns))
        for line in lines:
            student = line.kind == "student"
            mark = "" if title == REFERENCE else "> " if plain and student and not layout.roles else " "
            cells = [_text(cell, plain) for cell in line.cells]
            label = textwrap.fill(mark + line.label, LONGEST, subsequent_indent=" ")
            style = "bold cyan" if student else ""
            table.add_row(Text(label, style=style), *cells, end_section=line is lines[-1])
    return table


def _caption(layout: Layout, names: Mapping[str, str], plain: bool) -> str:
    measures = list(dict.fromkeys(column.measure for column in layout.columns))
    paired = ", ".join(PAIRED[measure] for measure in measures if measure in PAIRED)
    parts = [f"best of {layout.best_of} {'marked *' if plain else 'in bold'}", f"{paired} against the reference"]
    parts += [f"{measure} is {names[measure]}" for measure in measures if names.get(measure, measure) != measure]
    return "; ".join([*parts, f"reference: {layout.yardstick}"])


def _text(cell: Cell, plain: bool) -> Text:
    if plain:
        return Text(f"*{cell.text}" if cell.best else cell.text)
    return Text(cell.text, style="bold green" if cell.best else "")
