"""Every fit on the same students: error against network evaluations and against seconds.

Each run has a process of its own with one thread, on a GPU they all run in this one, one after the other; what is done
is kept in a JSON file, so that a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from solverdistill.support.files import write_atomically

from .families import make_reference, run_job
from .fits_figure import draw
from .fits_report import report
from .recipes import LONG, recipes_of
from .records import CLASSICAL, Record
from .setting import Job
from .student import measure


@dataclass(frozen=True)
class FitRun:
    """One run of one recipe, and what it came to.

    Args:
        recipe: Name in `recipes.RECIPES`; "classical" for all classical solvers of a cost.
        job: What the process was asked for.
        record: What it measured.
    """

    recipe: str
    job: Job
    record: Record

    @classmethod
    def read(cls, path: Path) -> list[FitRun]:
        """Runs of a file; none where there is no file."""
        if not path.is_file():
            return []
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [cls(row["recipe"], Job(**row["job"]), Record(**row["record"])) for row in rows]


def write_runs(path: Path, runs: Sequence[FitRun]) -> None:
    """Write runs, one per line."""
    rows = ",\n".join(json.dumps(asdict(run)) for run in runs)
    write_atomically(path, f"[\n{rows}\n]\n")


def plan(arguments: argparse.Namespace) -> list[tuple[str, Job]]:
    """Every run that is wanted: seed by seed, so that an early end leaves a whole table."""
    jobs = [(CLASSICAL, _job(arguments, CLASSICAL, nfe, 0, (), arguments.evaluations)) for nfe in arguments.nfe]
    for seed in range(arguments.seeds):
        for solver in arguments.solvers:
            for nfe in arguments.nfe_of.get(solver, arguments.nfe):
                for name, recipe in recipes_of(solver).items():
                    if arguments.recipes and name not in arguments.recipes:
                        continue
                    budget = arguments.evaluations * (LONG if recipe.long else 1)
                    if seed == 0 or not recipe.once:
                        jobs.append((name, _job(arguments, solver, nfe, seed, recipe.overrides, budget)))
    return jobs


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing, then write the report, the runs and the figure."""
    torch.set_num_threads(1)
    out: Path = arguments.out
    if not out.parent.is_dir():
        raise FileNotFoundError(f"folder {out.parent} of --out does not exist")
    arguments.nfe_of = {"epd": arguments.nfe_epd}
    table = out.with_suffix(".json")
    done = [] if arguments.fresh else FitRun.read(table)
    wanted = plan(arguments)
    known = {(one.recipe, json.dumps(asdict(one.job))) for one in done}
    todo = [(name, job) for name, job in wanted if (name, json.dumps(asdict(job))) not in known]
    print(f"{len(todo)} of {len(wanted)} to do", flush=True)
    if todo:
        make_reference(todo[0][1])
    processes, do = (arguments.jobs, run_job) if arguments.device == "cpu" else (1, run_here)
    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(do, job): (name, job) for name, job in todo}
        for count, future in enumerate(as_completed(futures), 1):
            (name, job), made = futures[future], future.result()
            if isinstance(made, str):
                print(f"[{count}/{len(todo)}] {name} {job.solver} nfe {job.nfe} failed:\n{made}", flush=True)
                continue
            done += [FitRun(name, job, record) for record in made]
            write_runs(table, done)
            best = min(made, key=lambda record: record.rmse_mean)
            text = f"{name} {best.solver} nfe {job.nfe} seed {job.seed}: RMSE {best.rmse_mean:.4f}"
            print(f"[{count}/{len(todo)}] {text}", flush=True)
    write_atomically(out, report(done, arguments))
    draw(out.with_suffix(".png"), done)
    print(f"{out}, {table.name} and {out.with_suffix('.png').name} are written", flush=True)


def run_here(job: Job) -> list[Record] | str:
    """Do one job in this process; a failure gives its sentence."""
    try:
        return measure(job)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _job(arguments: argparse.Namespace, solver: str, nfe: int, seed: int, own: tuple[str, ...], budget: int) -> Job:
    overrides = [*own, *arguments.set]
    return Job(solver, nfe, arguments.model, budget, arguments.test_samples, seed, overrides, arguments.device)
