"""One line of the family benchmark: a student trained with a budget and measured, or all classical solvers of a cost.

The student is trained as `train.py` trains it, by the same functions, and exported state against initial state compared
on test samples.
"""

from __future__ import annotations

import gc
import json
import logging
import resource
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything

from solverdistill.evaluation.candidates import Candidate, classical_candidates
from solverdistill.evaluation.compare import compare
from solverdistill.evaluation.lower_starts import best_from_lower
from solverdistill.evaluation.rows import Row
from solverdistill.objectives import features

from .records import CLASSICAL, Record
from .setting import Job, Setting

BATCH = 128  # samples per network call in comparisons


def measure_student(job: Job) -> Record:
    """Fit a student with the budget of evaluations, and measure it before and after."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.of(job, folder)
        if setting.device.type == "cuda":
            gc.collect()  # a network that a fit before this one left in a cycle
            torch.cuda.reset_peak_memory_stats(setting.device)
        seed_everything(job.seed, verbose=False)
        student = setting.student(job.nfe)
        initial = student.family.init(job.seed)
        standing = setting.fit(student, job.evaluations)
    megabytes = peak_megabytes(setting.device)
    family, reports = standing.student.family, standing.reports[1:]
    best = family.init(job.seed) if standing.params is None else standing.params
    programs = {"initial": student.family.program(initial), "final": family.program(best)}
    first, last = compare_on_test(setting, [Candidate.of(label, program) for label, program in programs.items()])
    targets = setting.targets.train_samples + setting.targets.validation_samples
    return Record(
        **_errors(job, "student", job.solver, last),
        initial_mean=first.rmse_mean,
        initial_median=first.rmse_median,
        initial_p95=first.rmse_p95,
        initial_frechet=first.frechet,
        params=sum(value.numel() for value in initial.values()),
        teacher_evaluations=targets * setting.reference_cost(student.rule),
        forward_evaluations=sum(report.spent["forward"].evaluations for report in reports),
        backward_evaluations=sum(report.spent["backward"].evaluations for report in reports),
        seconds=sum(report.seconds for report in reports),
        megabytes=megabytes,
        fits="+".join(report.fit for report in reports),
        history=[[report.fit, *point[:3]] for report in reports for point in report.history],
    )


def measure_classical(job: Job) -> list[Record]:
    """Measure every classical solver of exactly `job.nfe` evaluations, and the best of those that begin lower."""
    setting = Setting.of(job)
    noise, _, end, cond, *_ = setting.test().batch
    solvers = setting.teacher.path, setting.teacher.noise_range
    candidates = classical_candidates(*solvers, job.nfe).candidates
    candidates += best_from_lower(*solvers, setting.denoiser, noise, cond, end, job.nfe)
    rows = compare_on_test(setting, candidates)
    return [Record(**_errors(job, CLASSICAL, row.label, row)) for row in rows]


def compare_on_test(setting: Setting, candidates: list[Candidate]) -> list[Row]:
    """Rows of the candidates on the test samples, in their order."""
    extractor = features.for_teacher(setting.teacher)
    module, real = (extractor.module, extractor.real) if extractor else (None, None)
    noise, _, end, cond, *_ = setting.test().batch
    return compare(candidates, setting.denoiser, noise, cond, end, BATCH, module, real)[: len(candidates)]


def _errors(job: Job, kind: str, solver: str, row: Row) -> dict[str, Any]:
    names = ("nfe", "depth", "rmse_mean", "rmse_median", "rmse_p95", "frechet")
    return {"settings": job.settings, "kind": kind, "solver": solver, **{name: getattr(row, name) for name in names}}


def peak_megabytes(device: torch.device) -> float:
    """Largest resident memory of this process so far, or on a GPU that of its tensors, in 10^6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # kibibytes everywhere but on macOS


def measure(job: Job) -> list[Record]:
    """Do a job in this process."""
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices and tips
    return measure_classical(job) if job.solver == CLASSICAL else [measure_student(job)]


def run(text: str, result: Path) -> None:
    """Do the job that `text` describes in JSON, and write its records."""
    torch.set_num_threads(1)
    records = measure(Job(**json.loads(text)))
    result.write_text(json.dumps([asdict(record) for record in records]), encoding="utf-8")
