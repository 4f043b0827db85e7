"""Points beside a sequential solver: `parallel` against the solver that it starts from and against `epd`, by depth.

Every student is fitted with its own defaults on the same references, one after the other; what is done is kept in a
JSON file beside the page, so that a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from lightning import seed_everything

from solverdistill.fits.batches import mean_error, on_device
from solverdistill.fits.report import Meter
from solverdistill.support.files import write_atomically
from solverdistill.training.stages import fit_all

from .machine import command, describe
from .setting import Job, Setting

BATCH = 64
SAMPLES = "targets.validation_samples=512"  # for all alike, as parallel has them


@dataclass(frozen=True)
class Line:
    """One student, and what it came to.

    Args:
        settings: What decides the numbers beside the student.
        student: What it is called in the table.
        depth: Sequential network calls per sample.
        seed: Seed of the student.
        nfe: Evaluations per sample.
        rmse: Mean RMSE of the test samples against the reference, in data units.
        evaluations: What the fits took, in forward equivalents; references are not counted.
        seconds: Wall time of the fits.
    """

    settings: str
    student: str
    depth: int
    seed: int
    nfe: int
    rmse: float
    evaluations: int
    seconds: float


def students(depth: int, points: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """Names of the students of a depth, with what their configurations override."""
    yield "corrected", ["solver=corrected", f"solver.nfe={depth}"]
    for count in points:
        yield f"parallel, {count} points", ["solver=parallel", f"solver.depth={depth}", f"solver.points={count}"]
    odd = str(depth % 2 == 1).lower()  # an analytical first step saves a call
    yield "epd", ["solver=epd", "solver.nfe=null", f"+solver.depth={depth}", f"solver.afs={odd}"]


def measure(arguments: argparse.Namespace, student: str, depth: int, seed: int, overrides: list[str]) -> Line:
    """Fit one student and measure it on the test samples."""
    chosen = next(override.split("=")[1] for override in overrides)
    own = [*overrides[1:], SAMPLES, *arguments.set]
    with tempfile.TemporaryDirectory() as folder:
        job = Job(chosen, depth, arguments.model, 0, arguments.test_samples, seed, own)
        setting = Setting.of(job, folder)
        seed_everything(seed, verbose=False)
        run = setting.run
        plan = run.plan(lambda fit: None)
        standing = fit_all(plan, run.begin, run.data(run.student, setting.device, None))
    family, test = standing.student.family, on_device(setting.test().batch, setting.device)
    program = family.program(family.init(seed) if standing.params is None else standing.params).detach()
    error = mean_error(program, setting.denoiser, test, BATCH, Meter())
    fits = standing.reports[1:]
    spent = sum(report.evaluations for report in fits), sum(report.seconds for report in fits)
    return Line(settings_of(arguments), student, depth, seed, program.nfe, error, *spent)


def settings_of(arguments: argparse.Namespace) -> str:
    """What decides the numbers beside the student."""
    return " ".join([f"model={arguments.model}", f"test_samples={arguments.test_samples}", *arguments.set])


def run(arguments: argparse.Namespace) -> None:
    """Measure what is missing, and write the page after every student."""
    torch.set_num_threads(1)
    out: Path = arguments.out
    if not out.parent.is_dir():
        raise FileNotFoundError(f"folder {out.parent} of --out does not exist")
    kept = out.with_suffix(".json")
    known = [] if arguments.fresh or not kept.is_file() else json.loads(kept.read_text(encoding="utf-8"))
    lines = [Line(**row) for row in known]
    for seed in range(arguments.seeds):
        for depth in arguments.depth:
            for student, overrides in students(depth, arguments.points):
                key = settings_of(arguments), student, depth, seed
                if any((one.settings, one.student, one.depth, one.seed) == key for one in lines):
                    continue
                lines.append(measure(arguments, student, depth, seed, overrides))
                print(lines[-1], flush=True)
                rows = ",\n".join(json.dumps(asdict(line)) for line in lines)
                write_atomically(kept, f"[\n{rows}\n]\n")
                write_atomically(out, report(lines))


def report(lines: Sequence[Line]) -> str:
    """The page: a table per teacher."""
    page = [
        "# Points beside a sequential solver",
        "",
        "`parallel` against `corrected`, the sequential solver of the same depth that it starts from, and against",
        "`epd` of that depth. Errors are mean RMSE of held-out samples against the reference from the same noise, in",
        "data units; of several seeds the mean, with their range. *evaluations*: what the fits took, in forward",
        "equivalents, of `parallel` those of its sequential solver included; the references are shared and not",
        "counted.",
    ]
    for settings in dict.fromkeys(line.settings for line in lines):
        page += [
            "",
            f"## {settings.split()[0].removeprefix('model=')}",
            "",
            f"`{settings}`",
            "",
            *table(lines, settings),
        ]
    return "\n".join([*page, "", f"- Command: `{command()}`", f"- Machine: {describe(torch.device('cpu'))}", ""])


def table(lines: Sequence[Line], settings: str) -> Iterator[str]:
    """Lines of the table of one teacher."""
    yield "| depth | student | nfe | RMSE | against `corrected` | evaluations | seconds |"
    yield "|---:|---|---:|---:|---:|---:|---:|"
    own = [line for line in lines if line.settings == settings]
    for depth, student in sorted({(line.depth, line.student): None for line in own}, key=lambda key: key[0]):
        rows = [line for line in own if (line.depth, line.student) == (depth, student)]
        start = [line.rmse for line in own if (line.depth, line.student) == (depth, "corrected")]
        errors = [line.rmse for line in rows]
        spread = f" ({min(errors):.4f} to {max(errors):.4f})" if len(errors) > 1 else ""
        gain = f"{100 * (mean(errors) / mean(start) - 1):+.0f} %" if start and student != "corrected" else ""
        spent = f"{mean(line.evaluations for line in rows):,.0f} | {mean(line.seconds for line in rows):.0f}"
        yield f"| {depth} | {student} | {rows[0].nfe} | {mean(errors):.4f}{spread} | {gain} | {spent} |"
