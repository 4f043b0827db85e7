"""Every student of the roster, trained with the same number of network evaluations and compared on held-out samples.

Each student runs in a process of its own with one thread; what is done is kept in a CSV file, so that a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch

from solverdistill.support.files import write_atomically
from solverdistill.support.progress import TargetProgress
from solverdistill.training.config_files import find_configs

from .families_figure import draw
from .families_report import report
from .records import CLASSICAL, Record, read_records, write_records
from .setting import Job, Setting

Plan = dict[int, dict[str, int]]  # wanted nfe -> student -> nfe that it can spend
LEFT_OUT = ("own", "parallel", "table")  # they need a name, a depth, a solver to start from
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing, then write the report, the CSV file and the figure."""
    torch.set_num_threads(1)
    out: Path = arguments.out
    if not out.parent.is_dir():
        raise FileNotFoundError(f"folder {out.parent} of --out does not exist")
    table = out.with_suffix(".csv")
    if arguments.fresh:
        table.unlink(missing_ok=True)
    plan, settings = make_plan(arguments), job_of(arguments, CLASSICAL, 1).settings
    wanted = wanted_keys(plan)
    try:
        records = read_records(table, settings)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    done = {record.key for record in records}
    jobs = [job_of(arguments, solver, nfe) for solver, nfe in wanted if (solver, nfe) not in done]
    print(f"{len(jobs)} of {len(wanted)} to do ({len(wanted) - len(jobs)} done before)", flush=True)
    if jobs:
        make_reference(jobs[0])
    failed = 0
    for job, made in finished(jobs, arguments.jobs):
        failed += isinstance(made, str)
        if isinstance(made, str):
            print(f"{job.solver} nfe {job.nfe} failed:\n{made}", file=sys.stderr, flush=True)
        else:
            records += made
            write_records(table, sorted(records, key=lambda record: wanted_rank(wanted, record)))
    write_atomically(out, report(records, plan, arguments))
    draw(out.with_suffix(".png"), records)
    print(f"{out}, {table.name} and {out.with_suffix('.png').name} are written", flush=True)
    if failed:
        sys.exit(f"error: {failed} of {len(jobs)} failed; start again to repeat them")


def make_plan(arguments: argparse.Namespace) -> Plan:
    """The nfe at which every student runs for every wanted nfe."""
    every = sorted(path.stem for path in (find_configs() / "solver").glob("*.yaml"))
    solvers = arguments.solvers or [solver for solver in every if solver not in LEFT_OUT]
    plan: Plan = {nfe: {} for nfe in sorted(set(arguments.nfe))}
    for solver in solvers:
        setting = Setting.of(job_of(arguments, solver, 1))
        for nfe in plan:
            plan[nfe][solver] = setting.nearest(nfe)
    return plan


def wanted_keys(plan: Plan) -> list[tuple[str, int]]:
    """What has to be done, each once: first the classical solvers of a cost, then its students."""
    keys: dict[tuple[str, int], None] = {}
    for nfe, students in plan.items():
        keys |= dict.fromkeys([(CLASSICAL, nfe), *students.items()])
    return list(keys)


def wanted_rank(wanted: Sequence[tuple[str, int]], record: Record) -> int:
    """Place of a record in the CSV file; what is not wanted this time comes last."""
    return wanted.index(record.key) if record.key in wanted else len(wanted)


def job_of(arguments: argparse.Namespace, solver: str, nfe: int) -> Job:
    """The job of a student, or of all classical solvers, with the settings of the command line."""
    return Job(
        solver,
        nfe,
        arguments.model,
        arguments.evaluations,
        arguments.test_samples,
        arguments.seed,
        list(arguments.set),
    )


def make_reference(job: Job) -> None:
    """Fill the cache of reference trajectories, which all processes read."""
    setting = Setting.of(job)
    for split in ("train", "validation", "test"):
        setting.make(split, TargetProgress())


def finished(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, list[Record] | str]]:
    """Run jobs, some at a time, and yield each with its records, or with the end of its complaint, when it is done."""
    start = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                made = future.result()
                spent = time.perf_counter() - start
                left = spent / count * (len(jobs) - count) / 60
                if not isinstance(made, str):
                    print(f"[{count}/{len(jobs)}] {summary(made)}; about {left:.0f} min left", flush=True)
                yield futures[future], made
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_job(job: Job) -> list[Record] | str:
    """Do one job in a process of its own; a failure gives the end of what it said."""
    script = Path(__file__).resolve().parents[1] / "benchmark.py"
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(script), "student", json.dumps(asdict(job)), str(result)]
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
        if done.returncode or not result.is_file():
            return done.stderr[-2000:] or f"exit code {done.returncode}"
        return [Record(**record) for record in json.loads(result.read_text(encoding="utf-8"))]


def summary(records: Sequence[Record]) -> str:
    """One line about a finished job."""
    best = min(records, key=lambda record: record.rmse_mean, default=None)
    if best is None:
        return "no classical solver of this cost"
    if best.kind == CLASSICAL:
        return f"classical nfe {best.nfe}: best {best.solver}, RMSE {best.rmse_mean:.4f}"
    text = f"{best.solver} nfe {best.nfe}: RMSE {best.initial_mean:.4f} -> {best.rmse_mean:.4f}, {best.seconds:.0f} s"
    return f"{text} (WORSE than its start)" if best.worse else text
