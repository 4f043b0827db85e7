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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback, seed_everything
from omegaconf import DictConfig, OmegaConf

from solverdistill import features
from solverdistill.denoiser import Counted, Guided, Teacher
from solverdistill.evaluation.candidates import Candidate, classical_candidates
from solverdistill.evaluation.compare import Row, compare
from solverdistill.run import Student, check_config, make_fit, make_module, make_student, make_trainer
from solverdistill.targets import TargetData, Targets, TargetSettings, make_targets
from solverdistill.trajectories import Reference, seeded_noise

from .records import CLASSICAL, Record

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUIET = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=csv", "evaluation=off", "run_name=benchmark")
BATCH = 128  # samples per network call in comparisons


@dataclass(frozen=True)
class Job:
    """What one process does.

    Args:
        solver: Name of a student's configuration, or "classical" for all classical solvers.
        nfe: Evaluations per sample.
        model: Name of the teacher's configuration.
        evaluations: Budget: images that the network sees forward in training.
        test_samples: Held-out samples to compare on.
        seed: Seed of the student.
        overrides: Further overrides of the configuration.
    """

    solver: str
    nfe: int
    model: str
    evaluations: int
    test_samples: int
    seed: int = 0
    overrides: list[str] = field(default_factory=list)

    @property
    def settings(self) -> str:
        """Everything that decides the numbers beside solver and nfe."""
        facts = f"model={self.model} evaluations={self.evaluations} test_samples={self.test_samples} seed={self.seed}"
        return " ".join([facts, *self.overrides])


@dataclass(frozen=True)
class Setting:
    """A configuration with the teacher and the targets that it speaks of."""

    config: DictConfig
    teacher: Teacher
    denoiser: Counted
    targets: TargetSettings

    @classmethod
    def of(cls, job: Job, output: str = ".") -> Setting:
        """Compose the configuration of a job and load its teacher."""
        solver = [] if job.solver == CLASSICAL else [f"solver={job.solver}"]
        own = [f"model={job.model}", f"seed={job.seed}", f"targets.test_samples={job.test_samples}"]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("train", overrides=[*QUIET, f"output_dir={output}", *solver, *own, *job.overrides])
        check_config(config)
        teacher: Teacher = hydra.utils.instantiate(config.model)
        options: Any = OmegaConf.to_container(config.targets, resolve=True)
        targets = TargetSettings(**{**options, "reference": Reference(**options["reference"])})
        return cls(config, teacher, Counted(Guided(teacher, config.guidance, teacher.null_cond)), targets)

    def student(self, nfe: int) -> Student:
        """The configured student at exactly `nfe` evaluations."""
        self.config.solver.nfe = nfe
        return make_student(self.config.solver, self.teacher)

    def nearest(self, nfe: int) -> int | None:
        """The nfe that the student can spend exactly and that is nearest to `nfe` from below; None for none."""
        for wanted in range(nfe, 0, -1):
            try:
                return self.student(wanted).family.nfe
            except ValueError:
                continue
        return None

    def test(self) -> Targets:
        """End points of the test samples."""
        return make_targets(self.targets, "test", self.teacher, self.denoiser)

    def reference_cost(self) -> int:
        """Images evaluated for one reference trajectory, as measured on one sample."""
        before = self.denoiser.images
        noise, cond = seeded_noise([0], self.teacher, self.targets.seed)
        with torch.no_grad():
            self.targets.reference.solve(self.teacher, self.denoiser, noise, cond, self.student(self.nfe).rule)
        return self.denoiser.images - before

    @property
    def nfe(self) -> int:
        """The nfe of the configuration."""
        return self.config.solver.nfe


class TrainingEvaluations(Callback):
    """Counts the images that a denoiser sees in training steps, apart from those in validation.

    Args:
        denoiser: The counting denoiser.
    """

    def __init__(self, denoiser: Counted) -> None:
        self.denoiser, self.images, self._before = denoiser, 0, 0

    def on_train_batch_start(self, *args: Any) -> None:
        self._before = self.denoiser.images

    def on_train_batch_end(self, *args: Any) -> None:
        self.images += self.denoiser.images - self._before


def measure_student(job: Job) -> Record:
    """Train a student with the budget of evaluations, and measure it before and after."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.of(job, folder)
        config, denoiser = setting.config, setting.denoiser
        seed_everything(config.seed, verbose=False)
        student = setting.student(job.nfe)
        config.fit.iterations = max(1, job.evaluations // (config.fit.batch_size * job.nfe))
        fit = make_fit(config)
        module = make_module(config, student, denoiser, fit, setting.teacher, setting.targets)
        initial = student.family.program(module.current_params())
        dense = getattr(module.objective, "needs_reference", False)
        data = TargetData(
            setting.targets,
            setting.teacher,
            denoiser,
            student.family,
            fit.batch_size,
            fit.iterations,
            rule=student.rule,
            dense=dense,
        )
        data.split("train"), data.split("validation")
        trainer = make_trainer(config, fit, Path(folder))
        counter = TrainingEvaluations(denoiser)
        trainer.callbacks.append(counter)  # type: ignore[attr-defined]
        before, start = denoiser.images, time.perf_counter()
        trainer.fit(module, datamodule=data)
        seconds, spent = time.perf_counter() - start, denoiser.images - before
    megabytes = peak_megabytes()
    final = student.family.program(module.best_params)
    first, last = _compare(setting, [Candidate.of("initial", initial), Candidate.of("final", final)])
    counts = setting.targets.train_samples + setting.targets.validation_samples
    return Record(
        **_errors(job, "student", job.solver, last),
        initial_mean=first.rmse_mean,
        initial_median=first.rmse_median,
        initial_p95=first.rmse_p95,
        initial_frechet=first.frechet,
        params=sum(value.numel() for value in module.best_params.values()),
        iterations=fit.iterations,
        teacher_evaluations=counts * setting.reference_cost(),
        training_evaluations=counter.images,
        validation_evaluations=spent - counter.images,
        seconds=seconds,
        megabytes=megabytes,
    )


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
