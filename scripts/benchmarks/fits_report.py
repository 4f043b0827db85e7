"""The fit benchmark as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch

from .machine import command, describe
from .recipes import LONG, RECIPES
from .records import CLASSICAL, Record

MEMORY = "GPU memory [GB]"
TITLES = ("fit", "RMSE mean", "median", "p95", "spread", "evaluations", "seconds")


def report(runs: Sequence[Any], arguments: argparse.Namespace) -> str:
    """The whole page.

    Args:
        runs: `fits.FitRun`s.
        arguments: The command line.
    """
    lines = ["# Fits", "", *_introduction(arguments), ""]
    for solver in arguments.solvers:
        for nfe in sorted({run.job.nfe for run in runs if run.job.solver == solver}):
            lines += [f"## {solver}, nfe {nfe}", "", *_table(runs, solver, nfe), ""]
    lines += [f"![held-out error against evaluations]({arguments.out.with_suffix('.png').name})", ""]
    lines += [f"- Command: `{command()}`"]
    device, shared = torch.device(arguments.device), f"; {arguments.jobs} processes at a time, one thread each"
    lines += [f"- Machine: {describe(device)}{shared if arguments.device == 'cpu' else ''}"]
    return "\n".join([*lines, ""])


def first_below(history: Sequence[Sequence[Any]], error: float) -> int | None:
    """Evaluations after which a run's held-out error was at most `error`; None if it never was.

    Args:
        history: (fit, held-out RMSE, evaluations of that fit, seconds) of every state kept, fit after fit.
    """
    for rmse, evaluations, _ in curve(history):
        if rmse <= error:
            return evaluations
    return None


def curve(history: Sequence[Sequence[Any]]) -> list[tuple[float, int, float]]:
    """(held-out RMSE, evaluations, seconds) of a run, those of the fits before included."""
    points, before, last, name = list[tuple[float, int, float]](), (0, 0.0), (0, 0.0), None
    for fit, rmse, evaluations, seconds in history:
        if fit != name:
            before, name = last, fit
        last = (before[0] + evaluations, before[1] + seconds)
        points.append((rmse, *last))
    return points


def _table(runs: Sequence[Any], solver: str, nfe: int) -> list[str]:
    chosen = [run for run in runs if run.job.solver == solver and run.job.nfe == nfe]
    rows: list[tuple[float, list[str]]] = []
    memory = any(run.job.device != "cpu" for run in chosen)
    titles = (*TITLES, MEMORY) if memory else TITLES
    for name, recipe in RECIPES.items():
        records = [run.record for run in chosen if run.recipe == name]
        if records:
            title = f"{recipe.title}{f', {LONG} x the budget' if recipe.long else ''}"
            rows.append((mean(record.rmse_mean for record in records), _cells(title, records, memory)))
    classical = [run.record for run in runs if run.recipe == CLASSICAL and run.job.nfe == nfe]
    if classical:
        best = min(classical, key=lambda record: record.rmse_mean)
        errors = [f"{value:.4f}" for value in (best.rmse_mean, best.rmse_median, best.rmse_p95)]
        rows.append((best.rmse_mean, [f"best classical: {best.solver}", *errors, *["-"] * (len(titles) - 4)]))
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for _, cells in sorted(rows, key=lambda row: row[0])]
    return [*lines, *_goal(chosen)]


def _cells(title: str, records: Sequence[Record], memory: bool) -> list[str]:
    means = [record.rmse_mean for record in records]
    spread = f"{min(means):.4f} to {max(means):.4f} ({len(means)})" if len(means) > 1 else "-"
    errors = [mean(values) for values in zip(*((r.rmse_mean, r.rmse_median, r.rmse_p95) for r in records), strict=True)]
    spent = mean(record.forward_evaluations + record.backward_evaluations for record in records)
    seconds = mean(record.seconds or 0.0 for record in records)
    cells = [title, *(f"{error:.4f}" for error in errors), spread, f"{spent:,.0f}", f"{seconds:.0f}"]
    return [*cells, f"{max(record.megabytes or 0.0 for record in records) / 1000:.1f}"] if memory else cells


def _goal(chosen: Sequence[Any]) -> list[str]:
    """How soon the default reaches the final held-out error of the paper's recipe and of Adam."""
    first = [run for run in chosen if run.job.seed == 0]
    lines = list[str]()
    for default in (run for run in first if run.recipe == "default"):
        for run in (run for run in first if RECIPES[run.recipe].long or run.recipe == "adam"):
            error, spent, _ = curve(run.record.history)[-1]
            whose = "The paper's recipe" if RECIPES[run.recipe].long else "Adam"
            reached = first_below(default.record.history, error)
            when = "never" if reached is None else f"after {reached:,}, {reached / max(spent, 1):.0%} of them"
            text = f"{whose} ends at a held-out error of {error:.4f} after {spent:,} evaluations"
            lines += ["", f"{text}; the default is as low {when} (seed 0)."]
    return lines


def _introduction(arguments: argparse.Namespace) -> list[str]:
    text = f"""
Students fitted to the teacher `{arguments.model}` by every fit. The budget of a fit is {arguments.evaluations:,}
network evaluations, {LONG} times as many for a paper's own gradient recipe. A fit may stop before its budget
is spent, and a race or a least-squares fit has none of its own. Errors are those of {arguments.test_samples} held-out
samples against the reference from the same noise, in data units, each the mean over the seeds that ran; *spread* is
their range and number. *evaluations*: images that the network evaluated in the fits, forward (on
training and on validation samples) and backward; the backward pass of an image counts as one, a directional derivative
as 1.5. The figure shows errors of the validation samples, which decide what a fit keeps, of the first seed.
"""
    return text.strip().split("\n")
