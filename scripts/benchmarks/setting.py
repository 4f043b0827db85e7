"""What one process of the family benchmark is asked for, and the configuration that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.wrappers import Counted
from solverdistill.families.student import Student
from solverdistill.fits.gauss_newton.fit import GaussNewtonFit
from solverdistill.fits.gradient.fit import GradientFit
from solverdistill.fits.greedy import GreedyFit
from solverdistill.fits.protocol import Fit, Standing
from solverdistill.fits.report import BACKWARD_COST
from solverdistill.noise.grids import Grid
from solverdistill.references.seeding import seeded_noise
from solverdistill.references.targets import Targets, TargetSettings, make_targets
from solverdistill.support.progress import TargetProgress
from solverdistill.training.config_files import find_configs
from solverdistill.training.configuration import Run, make_student
from solverdistill.training.stages import fit_all
from solverdistill.training.trainer import make_trainer

from .records import CLASSICAL

QUIET = ("trainer.enable_progress_bar=false", "logger=csv", "evaluation=off", "run_name=benchmark")


@dataclass(frozen=True)
class Job:
    """What one process does.

    Args:
        solver: Name of a student's configuration, or "classical" for all classical solvers.
        nfe: Evaluations per sample.
        model: Name of the teacher's configuration.
        evaluations: Budget of every fit, in forward equivalents: a backward pass counts as a forward one.
        test_samples: Held-out samples to compare on.
        seed: Seed of the student.
        overrides: Further overrides of the configuration.
        device: "cpu" or "cuda", where the network runs.
    """

    solver: str
    nfe: int
    model: str
    evaluations: int
    test_samples: int
    seed: int = 0
    overrides: list[str] = field(default_factory=list)
    device: str = "cpu"

    @property
    def settings(self) -> str:
        """Everything that decides the numbers beside solver and nfe."""
        facts = f"model={self.model} evaluations={self.evaluations} test_samples={self.test_samples} seed={self.seed}"
        return " ".join([facts, *self.overrides])


@dataclass(frozen=True)
class Setting:
    """A run of a job's configuration, built but not begun."""

    run: Run
    device: torch.device

    @classmethod
    def of(cls, job: Job, output: str = ".") -> Setting:
        """Compose the configuration of a job and load its teacher."""
        solver = [] if job.solver == CLASSICAL else [f"solver={job.solver}"]
        own = [f"model={job.model}", f"seed={job.seed}", f"targets.test_samples={job.test_samples}"]
        own.append("trainer=cpu" if job.device == "cpu" else "trainer=default")
        with initialize_config_dir(str(find_configs()), version_base="1.3"):
            config = compose("train", overrides=[*QUIET, f"output_dir={output}", *solver, *own, *job.overrides])
        plain: Any = OmegaConf.to_container(config, resolve=True)
        run = Run.of(plain)
        # One reference for all students and budgets of a table: the default one, where a recipe names none.
        run = replace(run, targets=replace(run.targets, measure=()))
        setting = cls(run, torch.device(job.device))
        setting.denoiser.to(setting.device)
        return setting

    @property
    def teacher(self) -> Teacher:
        """The frozen network."""
        return self.run.teacher

    @property
    def denoiser(self) -> Counted:
        """The possibly guided teacher."""
        return self.run.denoiser

    @property
    def targets(self) -> TargetSettings:
        """What the targets are made with."""
        return self.run.targets

    def student(self, nfe: int) -> Student:
        """The configured student at exactly `nfe` evaluations."""
        return make_student({**self.run.config["solver"], "nfe": nfe}, self.teacher)

    def fit(self, student: Student, evaluations: int) -> Standing:
        """Run the configured fits on a student, each stage that has a length for a budget of evaluations.

        Args:
            student: Where to begin.
            evaluations: Forward equivalents: a backward pass of an image counts as one forward pass.
        """
        fits = {name: with_budget(fit, evaluations, student.family.nfe) for name, fit in self.run.fits.items()}
        run = replace(self.run, student=student, fits=fits)
        data = run.data(student, self.device, None)
        for split in ("train", "validation"):
            data.split(split)  # from the cache, outside of what is measured
        plan = run.plan(lambda fit: make_trainer(run.config, fit, Path(run.config["output_dir"])))
        return fit_all(plan, Standing(student), data)

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
        return self.make("test")

    def make(self, split: str, progress: TargetProgress | None = None) -> Targets:
        """A split of the targets, from the cache where they lie there."""
        return make_targets(self.targets, split, self.teacher, self.denoiser, device=self.device, progress=progress)

    def reference_cost(self, rule: Grid | None) -> int:
        """Images evaluated for one reference trajectory, as measured on one sample."""
        before = self.denoiser.images
        noise, cond = seeded_noise([0], self.teacher, self.targets.seed)
        cond = None if cond is None else pytree.tree_map(lambda leaf: leaf.to(self.device), cond)
        with torch.no_grad():
            self.targets.reference.solve(self.teacher, self.denoiser, noise.to(self.device), cond, rule)
        return self.denoiser.images - before


def with_budget(fit: Fit, evaluations: int, nfe: int) -> Fit:
    """A fit that spends about this many evaluations, where its length can be chosen."""
    if isinstance(fit, GradientFit):
        return replace(fit, iterations=max(1, round(evaluations / ((1 + BACKWARD_COST) * fit.batch_size * nfe))))
    if isinstance(fit, GaussNewtonFit):
        return replace(fit, evaluations=evaluations, iterations=10_000)
    if isinstance(fit, GreedyFit):
        return replace(fit, samples=max(1, min(evaluations // nfe, fit.samples)))
    return fit
