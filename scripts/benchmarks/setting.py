"""What one process of the family benchmark is asked for, and the configuration that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from solverdistill.configuration import check_config, make_student
from solverdistill.denoiser import Counted, Guided, Teacher
from solverdistill.grids import Grid
from solverdistill.students import Student
from solverdistill.targets import Targets, TargetSettings, make_targets
from solverdistill.trajectories import Reference, seeded_noise

from .records import CLASSICAL

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUIET = ("trainer=cpu", "trainer.enable_progress_bar=false", "logger=csv", "evaluation=off", "run_name=benchmark")


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

    def nearest(self, nfe: int) -> int:
        """The nfe that the student can spend exactly and that is nearest to `nfe` from below.

        Raises:
            ValueError: there is none.
        """
        for wanted in range(nfe, 1, -1):
            try:
                return self.student(wanted).family.nfe
            except ValueError:
                continue
        return self.student(1).family.nfe

    def test(self) -> Targets:
        """End points of the test samples."""
        return make_targets(self.targets, "test", self.teacher, self.denoiser)

    def reference_cost(self, rule: Grid | None) -> int:
        """Images evaluated for one reference trajectory, as measured on one sample."""
        before = self.denoiser.images
        noise, cond = seeded_noise([0], self.teacher, self.targets.seed)
        with torch.no_grad():
            self.targets.reference.solve(self.teacher, self.denoiser, noise, cond, rule)
        return self.denoiser.images - before
