"""One HTML file that shows an evaluation: facts, figures and the whole table, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from solverdistill.evaluation.reports.table_layout import Layout, Line
from solverdistill.evaluation.rows import REFERENCE
from solverdistill.support.files import write_atomically

STYLE = """
:root { color-scheme: light; --ink: #222; --faint: #e3e3e3; --student: #b3161b; --best: #e8f3ea; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.lead { margin: 0 0 1.2rem; color: #555; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
ul.warnings { border-left: 4px solid #d99100; background: #fff8e8; padding: .6rem 1rem .6rem 2rem; margin: 1rem 0; }
figure { margin: 0 0 1.6rem; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #555; font-size: .9rem; margin-top: .3rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .22rem .5rem; text-align: right; } th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 600; vertical-align: bottom; white-space: normal; }
thead tr.measures th { border-bottom: none; text-align: center; max-width: 6rem; }
tbody { border-bottom: 1px solid var(--faint); }
tbody th { text-align: left; color: #666; font-weight: normal; font-style: italic; padding-top: .7rem; }
tr.student td:first-child { color: var(--student); font-weight: 600; }
td.best { background: var(--best); font-weight: 600; }
ul.notes { color: #555; font-size: .9rem; padding-left: 1.2rem; }
"""


def write_report(
    path: str | os.PathLike[str],
    title: str,
    lead: str,
    facts: Mapping[str, str],
    table: Layout,
    names: Mapping[str, str],
    figures: Mapping[str, Path],
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the report.

    Args:
        path: HTML file to write.
        title: Headline.
        lead: A sentence below it.
        facts: What was measured and how, by name.
        table: The table of all solvers and costs.
        names: Full names of the measures "FD" and "KD".
        figures: Caption -> PNG file, which becomes part of the report.
        warnings: Sentences that a reader must not miss.
        notes: What the numbers mean, below the table.
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead)}</p>']
    if warnings:
        parts.append('<ul class="warnings">' + _items(warnings) + "</ul>")
    parts.append("<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>")
    parts.append("<h2>Figures</h2>")
    parts += [_figure(caption, file) for caption, file in figures.items()]
    parts += ["<h2>All numbers</h2>", f'<div class="wide">{html_table(table, names)}</div>']
    parts.append('<ul class="notes">' + _items(notes) + "</ul>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    body = "\n".join(parts)
    return write_atomically(
        path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    )


def _items(sentences: Sequence[str]) -> str:
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)


def _figure(caption: str, file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def html_table(table: Layout, names: Mapping[str, str]) -> str:
    """The table alone, its style apart: two rows of titles, a body for every group.

    Args:
        table: What it shows.
        names: Full names of the measures "FD" and "KD".
    """
    columns = table.columns
    measures, parts = ["<th></th>"], ["<th>solver</th>"]
    for measure, members in groupby(columns, key=lambda column: column.measure):
        count = len(list(members))
        measures.append(f'<th colspan="{count}">{escape(names.get(measure, measure))}</th>')
    parts += [f"<th>{escape(column.part)}</th>" for column in columns]
    head = f'<thead><tr class="measures">{"".join(measures)}</tr><tr>{"".join(parts)}</tr></thead>'
    bodies: list[str] = []
    for title, lines in table.groups.items():
        heading = "" if title == REFERENCE else f'<tr><th colspan="{len(columns) + 1}">{escape(title)}</th></tr>'
        bodies.append(f"<tbody>{heading}{''.join(_line(line) for line in lines)}</tbody>")
    return f"<table>{head}{''.join(bodies)}</table>"


def _line(line: Line) -> str:
    cells = "".join(f'<td class="best">{c.text}</td>' if c.best else f"<td>{c.text}</td>" for c in line.cells)
    return f'<tr class="{escape(line.kind, quote=True)}"><td>{escape(line.label)}</td>{cells}</tr>'
