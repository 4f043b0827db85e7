"""One line of the family benchmark: a student trained with a budget and measured, or all classical solvers of a cost.

The student is trained as `train.py` trains it, by the same functions, and exported state against initial state compared
on test samples.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer, seed_everything

from solverdistill import features
from solverdistill.denoiser import Counted
from solverdistill.evaluation.candidates import Candidate, classical_candidates
from solverdistill.evaluation.compare import Row, compare
from solverdistill.families.base import Params
from solverdistill.fits.greedy import GreedyFit, check_greedy, fit_greedily
from solverdistill.module import FitSettings
from solverdistill.run import Student, make_fit, make_module, make_trainer
from solverdistill.targets import TargetData

from .records import CLASSICAL, Record
from .setting import Job, Setting

BATCH = 128  # samples per network call in comparisons


class TrainingEvaluations(Callback):
    """Counts the images that a denoiser sees in training steps, apart from those in validation.

    Args:
        denoiser: The counting denoiser.
    """

    def __init__(self, denoiser: Counted) -> None:
        self.denoiser, self.images, self._before = denoiser, 0, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._before = self.denoiser.images

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images += self.denoiser.images - self._before


class Training(NamedTuple):
    """A student trained with a budget, and what that took."""

    best: Params
    iterations: int
    training_images: int
    validation_images: int
    seconds: float


def measure_student(job: Job) -> Record:
    """Train a student with the budget of evaluations, and measure it before and after."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.of(job, folder)
        seed_everything(job.seed, verbose=False)
        student = setting.student(job.nfe)
        initial = student.family.init(job.seed)
        training = train(setting, student, job.evaluations, Path(folder))
    megabytes = peak_megabytes()
    programs = {"initial": student.family.program(initial), "final": student.family.program(training.best)}
    first, last = _compare(setting, [Candidate.of(label, program) for label, program in programs.items()])
    targets = setting.targets.train_samples + setting.targets.validation_samples
    return Record(
        **_errors(job, "student", job.solver, last),
        initial_mean=first.rmse_mean,
        initial_median=first.rmse_median,
        initial_p95=first.rmse_p95,
        initial_frechet=first.frechet,
        params=sum(value.numel() for value in initial.values()),
        iterations=training.iterations,
        teacher_evaluations=targets * setting.reference_cost(student.rule),
        training_evaluations=training.training_images,
        validation_evaluations=training.validation_images,
        seconds=training.seconds,
        megabytes=megabytes,
    )


def train(setting: Setting, student: Student, evaluations: int, folder: Path) -> Training:
    """Fit a student as `solverdistill.run.train` does, for as long as the budget of evaluations lasts."""
    config, denoiser, nfe = setting.config, setting.denoiser, student.family.nfe
    fit = make_fit(config)
    if isinstance(fit, GreedyFit):
        check_greedy(student.family)
        fit = replace(fit, samples=max(1, min(evaluations // nfe, setting.targets.train_samples)))
    elif isinstance(fit, FitSettings):
        fit = replace(fit, iterations=max(1, evaluations // (fit.batch_size * nfe)))
    else:
        raise ValueError(f"the families benchmark has no budget for fit={config.fit.kind}; take gradient or greedy")
    module = None
    if not isinstance(fit, GreedyFit):
        module = make_module(config, student, denoiser, fit, setting.teacher, setting.targets)
    data = TargetData(
        setting.targets,
        setting.teacher,
        denoiser,
        student.family,
        fit.batch_size,
        fit.iterations,
        rule=student.rule,
        dense=module is None or getattr(module.objective, "needs_reference", False),
    )
    batches, train_split = data.val_dataloader(), data.split("train")
    before, start = denoiser.images, time.perf_counter()
    if module is None:
        best = fit_greedily(student.family, denoiser, train_split.take(torch.arange(fit.batch_size)), batches).best
        training = fit.batch_size * nfe
    else:
        trainer, counter = make_trainer(config, fit, folder), TrainingEvaluations(denoiser)
        trainer.callbacks.append(counter)  # type: ignore[attr-defined]
        trainer.fit(module, datamodule=data)
        best, training = module.best_params, counter.images
    seconds, images = time.perf_counter() - start, denoiser.images - before
    return Training(best, fit.iterations, training, images - training, seconds)


def measure_classical(job: Job) -> list[Record]:
    """Measure every classical solver of exactly `job.nfe` evaluations."""
    setting = Setting.of(job)
    candidates = classical_candidates(setting.teacher.path, setting.teacher.noise_range, job.nfe).candidates
    rows = _compare(setting, candidates)
    return [Record(**_errors(job, CLASSICAL, row.label, row)) for row in rows]


def _compare(setting: Setting, candidates: list[Candidate]) -> list[Row]:
    """Rows of the candidates on the test samples, in their order."""
    extractor = features.for_teacher(setting.teacher)
    module, real = (extractor.module, extractor.real) if extractor else (None, None)
    noise, _, end, cond, *_ = setting.test().batch
    return compare(candidates, setting.denoiser, noise, cond, end, BATCH, module, real)[: len(candidates)]


def _errors(job: Job, kind: str, solver: str, row: Row) -> dict[str, Any]:
    names = ("nfe", "depth", "rmse_mean", "rmse_median", "rmse_p95", "frechet")
    return {"settings": job.settings, "kind": kind, "solver": solver, **{name: getattr(row, name) for name in names}}


def peak_megabytes() -> float:
    """Largest resident memory of this process so far, in 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # kibibytes everywhere but on macOS


def run(text: str, result: Path) -> None:
    """Do the job that `text` describes in JSON, and write its records."""
    job = Job(**json.loads(text))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lightning")
    records = measure_classical(job) if job.solver == CLASSICAL else [measure_student(job)]
    result.write_text(json.dumps([asdict(record) for record in records]), encoding="utf-8")
