"""The family benchmark as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch

from .machine import command, describe
from .records import CLASSICAL, Record

TITLES = ("solver", "nfe", "depth", "params", "RMSE mean", "RMSE median", "FD", "seconds", "evaluations", "MB")
DASH = "-"
SAME = 1e-4  # relative difference of errors below which two solvers are taken for one


def report(records: Sequence[Record], plan: Mapping[int, Mapping[str, int]], arguments: argparse.Namespace) -> str:
    """The whole page."""
    lines = ["# Students at equal budgets", "", *_introduction(arguments), ""]
    for nfe, students in plan.items():
        lines += [f"## nfe {nfe}", "", *_section(records, nfe, students), ""]
    lines += [f"![error against evaluations]({arguments.out.with_suffix('.png').name})", ""]
    return "\n".join([*lines, *_verdict(records), "", *_conditions(records, arguments), ""])


def starts(student: Record, classical: Sequence[Record]) -> Record | None:
    """The classical solver that a student begins as: the one whose errors are its initial errors."""
    for record in classical:
        pairs = [(student.initial_mean, record.rmse_mean), (student.initial_p95, record.rmse_p95)]
        if record.nfe == student.nfe and all(a is not None and abs(a - b) <= SAME * b for a, b in pairs):
            return record
    return None


def _section(records: Sequence[Record], nfe: int, students: Mapping[str, int]) -> list[str]:
    """The table of one cost, best first, and what it cannot show."""
    chosen = [r for r in records if r.kind != CLASSICAL and students.get(r.solver) == r.nfe]
    classical = sorted((r for r in records if r.kind == CLASSICAL and r.nfe == nfe), key=lambda r: r.rmse_mean)
    begun: dict[str, list[str]] = {}
    for student in chosen:
        start = starts(student, classical)
        if start is not None:
            begun.setdefault(start.solver, []).append(student.solver)
    names = {id(r): f"{r.solver} (start of {', '.join(begun[r.solver])})" for r in classical if r.solver in begun}
    if classical:
        names[id(classical[0])] = f"best classical: {names.get(id(classical[0]), classical[0].solver)}"
    rows = sorted([*chosen, *(r for r in classical if id(r) in names)], key=lambda r: r.rmse_mean)
    lines = ["| " + " | ".join(TITLES) + " |", "|---|" + "---:|" * (len(TITLES) - 1)]
    best = [_best(rows, lambda r: r.rmse_mean), _best(rows, lambda r: r.rmse_median), _best(rows, lambda r: r.frechet)]
    lines += ["| " + " | ".join(_cells(r, names.get(id(r), r.solver), best)) + " |" for r in rows]
    notes = [
        f"`{name}` runs at nfe {spent}, the nearest that it can spend below {nfe}."
        for name, spent in students.items()
        if spent != nfe
    ]
    return [*lines, "", *notes] if notes else lines


def _cells(record: Record, name: str, best: Sequence[float | None]) -> list[str]:
    errors = [
        _change(record.initial_mean, record.rmse_mean, best[0]) + (" **worse than its start**" if record.worse else ""),
        _change(record.initial_median, record.rmse_median, best[1]),
        DASH if record.frechet is None else _bold(f"{record.frechet:.2f}", record.frechet == best[2]),
    ]
    head = [name if record.kind == CLASSICAL else f"`{name}`", str(record.nfe), str(record.depth), str(record.params)]
    if record.kind == CLASSICAL:
        return [*head, *errors, DASH, DASH, DASH]
    spent = (record.teacher_evaluations, record.forward_evaluations, record.backward_evaluations)
    cost = [f"{record.seconds:.0f}", " + ".join(f"{count:,}" for count in spent), f"{record.megabytes:.0f}"]
    return [*head, *errors, *cost]


def _change(first: float | None, last: float, best: float | None) -> str:
    text = _bold(f"{last:.4f}", last == best)
    return text if first is None else f"{first:.4f} → {text}"


def _bold(text: str, wanted: bool) -> str:
    return f"**{text}**" if wanted else text


def _best(rows: Sequence[Record], value: Callable[[Record], float | None]) -> float | None:
    return min((v for v in map(value, rows) if v is not None), default=None)


def _introduction(arguments: argparse.Namespace) -> list[str]:
    text = f"""
Every student of the roster on the teacher `{arguments.model}`, with the defaults of `configs/solver`, trained with the
same budget: {arguments.evaluations:,} evaluations of the network, of which the backward pass of an image counts as one
(measured on the shipped U-Net, whose weights are frozen). Errors are those of {arguments.test_samples} held-out
samples, whose seeds neither training nor validation has seen.

- *RMSE*: of each sample against the reference from the same noise, in data units; of a student at its initialisation →
  after training. EPD starts at random params; where a student starts as a classical solver, that solver is in the table
  too. The CSV file has the 95th percentiles.
- *FD*: Frechet distance to the real images on the features of the digit classifier, after training.
- *evaluations*: images seen by the network for the reference trajectories of training and validation, which all
  students share, + forward in fits with their validations + backward, in forward evaluations.
- *seconds*: wall time of the fits. *MB*: largest resident memory of the process, most of it libraries.
"""
    return text.strip().split("\n")


def _verdict(records: Sequence[Record]) -> list[str]:
    students = [record for record in records if record.kind != CLASSICAL]
    worse = [f"`{record.solver}` at nfe {record.nfe}" for record in students if record.worse]
    return [f"Worse than their own start on the test samples: {', '.join(worse) if worse else 'none'}."]


def _conditions(records: Sequence[Record], arguments: argparse.Namespace) -> list[str]:
    processes = f"{arguments.jobs} process{'es' if arguments.jobs > 1 else ''} at a time, one thread each"
    return [
        f"- Command: `{command()}`",
        f"- Machine: {describe(torch.device('cpu'))}; {processes}",
        f"- Settings: {records[0].settings if records else 'none'}",
    ]
