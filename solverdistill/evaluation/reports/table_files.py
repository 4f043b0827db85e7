"""The table of a comparison as files: CSV with all digits, Markdown for people."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from solverdistill.evaluation.reports.table_layout import Layout, titles
from solverdistill.evaluation.rows import Row
from solverdistill.support.files import write_atomically


def write_csv(path: str | os.PathLike[str], rows: Sequence[Row]) -> Path:
    """Write rows with all their digits, in their order; a value that does not exist is an empty field."""
    stream = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if getattr(row, name) is None else getattr(row, name) for name in names])
    return write_atomically(path, stream.getvalue())


def write_markdown(
    path: str | os.PathLike[str], layout: Layout, names: Mapping[str, str], title: str, end: str
) -> Path:
    """Write a Markdown table, the best values in bold.

    Args:
        path: File to write.
        layout: The table. Where groups are roles, a column tells them; elsewhere students are in italics.
        names: Full names of the measures "FD" and "KD".
        title: Headline.
        end: Text below the table.
    """
    columns, heads = titles(layout.columns, names), ["group", "solver"] if layout.roles else ["solver"]
    lines = [f"# {title}", "", _row([*heads, *columns]), "|" + "---|" * len(heads) + "---:|" * len(columns)]
    for group, members in layout.groups.items():
        for line in members:
            label = line.label.replace("|", "\\|")
            start = [group, label] if layout.roles else [f"*{label}*" if line.kind == "student" else label]
            lines.append(_row([*start, *(f"**{cell.text}**" if cell.best else cell.text for cell in line.cells)]))
    return write_atomically(path, "\n".join([*lines, "", end]) + "\n")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
