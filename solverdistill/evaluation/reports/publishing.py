"""Writes what an evaluation has found: CSV, Markdown, figures, images and the HTML report."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from solverdistill.evaluation.evaluate import Evaluation
from solverdistill.evaluation.measuring import Measured
from solverdistill.evaluation.reports import figures
from solverdistill.evaluation.reports.html_report import write_report
from solverdistill.evaluation.reports.table_files import write_csv, write_markdown
from solverdistill.evaluation.reports.table_layout import by_nfe
from solverdistill.evaluation.rows import REFERENCE, Row
from solverdistill.version import __version__

CURVES = 8  # in a figure
STUDENTS = 4  # in the sample grid
NOTES = (
    "nfe counts evaluations of the network per sample, guidance once; depth counts sequential network calls.",
    "RMSE is per image, in data units, against the reference end point from the same noise; p95 and p5 are the value "
    "that 95 % of the images are at least as good as.",
    "Frechet and kernel distance are against the real images; they are biased upwards by few samples, so compare only "
    "numbers of one report. KD is multiplied by 1000.",
    "Precision: share of samples within the manifold of the real images; recall: share of real images within that of "
    "the samples (k-nearest-neighbour balls).",
    "Time is that of sampling all images, summed over processes.",
)


def publish(found: Evaluation, output: Path, title: str) -> dict[str, Path]:
    """Write all files of an evaluation into a folder.

    Returns:
        What was written, by kind: "csv", "markdown", "html" and the figures by their captions.
    """
    rows = [measured.row for measured in found.measured]
    output.mkdir(parents=True, exist_ok=True)
    folder = output / "figures"
    folder.mkdir(exist_ok=True)
    drawn = _figures(found, rows, folder)
    table, page, names, warnings = by_nfe(rows), output / "report.html", found.names, [*found.warnings]
    notes = [note for note in NOTES if found.names or not note.startswith(("Frechet", "Precision"))]
    facts = {**found.facts, "version": f"solverdistill {__version__}"}
    if any(row.coarse for row in rows):
        warnings.append(f"reference: {table.yardstick}")
    told = [*warnings, *(f"{name}: {value}" for name, value in facts.items()), *notes]
    below = "\n".join(f"- {sentence}" for sentence in told)
    return {
        "csv": write_csv(output / "metrics.csv", rows),
        "markdown": write_markdown(output / "metrics.md", table, names, title, below),
        "html": write_report(page, title, _lead(rows), facts, table, names, drawn, warnings, notes),
        **drawn,
    }


def _lead(rows: list[Row]) -> str:
    """What came out for the first three students: beside the best classical solver of equal nfe and of equal depth."""
    sentences: list[str] = []
    classical = [row for row in rows if row.kind == "classical"]
    for row in [row for row in rows if row.kind == "student"][:3]:
        rivals = {"nfe": [other for other in classical if other.nfe == row.nfe]}
        rivals["depth"] = [other for other in classical if other.depth == row.depth]
        best = {cost: min(found, key=lambda other: other.order) for cost, found in rivals.items() if found}
        beside = [f"of equal {cost} {other.rmse_mean:.4f} ({other.label})" for cost, other in best.items()]
        if beside:
            costs = f"nfe {row.nfe}, depth {row.depth}"
            sentences.append(
                f"{row.label} ({costs}): RMSE {row.rmse_mean:.4f}; the best classical solver {', '.join(beside)}."
            )
    return " ".join(sentences) or f"{len(rows) - 1} solvers against the reference."


def _figures(found: Evaluation, rows: list[Row], folder: Path) -> dict[str, Path]:
    students = [row for row in rows if row.kind == "student"]
    curves = figures.best_curves(figures.group_curves(rows), CURVES)
    drawn: dict[str, Path] = {}
    for value, file, title in (
        ("rmse_mean", "error_against_nfe.png", "RMSE against the reference (mean per image)"),
        ("frechet", "distance_against_nfe.png", found.names.get("FD", "FD")),
    ):
        if any(getattr(row, value) for row in (*students, *(row for curve in curves.values() for row in curve))):
            caption = f"{title} against nfe and against depth"
            drawn[caption] = figures.save(figures.draw_errors(curves, students, value, title), folder / file)
    columns = _columns(found.measured)
    shape = next(iter(columns.values())).shape
    if len(shape) == 4 and shape[0] and shape[1] in (1, 3):
        caption = "Samples of the same noise: each student beside the best classical solver of equal nfe"
        drawn[caption] = figures.save(figures.draw_samples(columns), folder / "samples.png")
    return drawn


def _columns(measured: list[Measured]) -> dict[str, Tensor]:
    """Columns of the sample grid: students with their best classical rival, or the best classical solvers."""
    classical = [entry for entry in measured if entry.row.kind == "classical"]
    students = [entry for entry in measured if entry.row.kind == "student"][:STUDENTS]
    chosen: list[Measured] = []
    for nfe in dict.fromkeys(entry.row.nfe for entry in students or classical):
        rivals = [entry for entry in classical if entry.row.nfe == nfe]
        chosen += sorted(rivals, key=lambda entry: entry.row.order)[:1]
        chosen += [entry for entry in students if entry.row.nfe == nfe]
    columns = {f"{e.row.label}\nnfe {e.row.nfe}\ndepth {e.row.depth}": e.images for e in chosen[: 2 * STUDENTS]}
    reference = next(entry for entry in measured if entry.row.kind == REFERENCE)
    return {**columns, REFERENCE: reference.images}
