"""Reads a composed configuration: the teacher, the student, the fits and everything else that a run is made of."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import hydra
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import make_guided
from solverdistill.denoisers.wrappers import Counted
from solverdistill.evaluation.after_training import EvaluationSettings
from solverdistill.families.base import Params
from solverdistill.families.student import Student
from solverdistill.fits.gauss_newton.fit import GaussNewtonFit
from solverdistill.fits.gradient.adversarial import AdversarialDistillation, AdversarialFit
from solverdistill.fits.gradient.module import FitSettings, OptimizerFactory, SolverDistillation
from solverdistill.fits.gradient.published_epd import PublishedEPDDistillation
from solverdistill.fits.gradient.relaxed import RelaxedDistillation, RelaxedFit
from solverdistill.fits.greedy import GreedyFit
from solverdistill.fits.least_squares.row_fits import LeastSquaresFit
from solverdistill.fits.point_search import PointSearchFit
from solverdistill.fits.race.fit import RaceFit
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import make_path
from solverdistill.references.datamodule import TargetData
from solverdistill.references.solving import Reference
from solverdistill.references.targets import Progress, TargetSettings
from solverdistill.training.progress_bar import progress_bar
from solverdistill.training.recording import last_checkpoint, make_loggers
from solverdistill.training.stages import AnyFit, check_fits, needs_trajectories

GROUPS = ("model", "objective", "targets", "fit", "optimizer", "trainer", "logger", "evaluation", "solver")
FITS: dict[str, type[AnyFit]] = {
    "gradient": FitSettings,
    "published_epd": FitSettings,
    "adversarial": AdversarialFit,
    "relaxed": RelaxedFit,
    "greedy": GreedyFit,
    "gauss_newton": GaussNewtonFit,
    "least_squares": LeastSquaresFit,
    "point_search": PointSearchFit,
    "race": RaceFit,
}
SCALARS = ("seed", "guidance", "ckpt_path", "run_name", "output_dir")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything that a configuration stands for, built but not yet begun."""

    config: DictConfig
    teacher: Teacher
    denoiser: Counted
    student: Student
    fits: dict[str, AnyFit]
    targets: TargetSettings
    evaluation: EvaluationSettings
    output: Path

    @classmethod
    def of(cls, config: DictConfig) -> Run:
        """Read a configuration and load its teacher."""
        check_config(config)
        teacher: Teacher = hydra.utils.instantiate(config.model)
        teacher, guided = make_guided(teacher, plain(config.guidance))
        denoiser: Any = guided
        student, fits, targets = make_student(config.solver, teacher), make_fits(config), plain(config.targets)
        check_fits(fits, student)
        settings = TargetSettings(**{**targets, "reference": Reference(**targets["reference"])})
        evaluation = EvaluationSettings(**plain(config.evaluation))
        return cls(config, teacher, Counted(denoiser), student, fits, settings, evaluation, Path(config.output_dir))

    @property
    def trained(self) -> FitSettings | None:
        """The fit with an optimizer; None where there is none."""
        return next((fit for fit in self.fits.values() if isinstance(fit, FitSettings)), None)

    def data(self, student: Student, device: torch.device, progress: Progress | None) -> TargetData:
        """The targets of the run."""
        fit = self.trained or FitSettings()
        dense = needs_trajectories(self.fits)
        if self.trained is not None:
            dense = dense or getattr(hydra.utils.instantiate(self.config.objective), "needs_reference", False)
        counts = fit.batch_size, fit.iterations
        source = self.targets, self.teacher, self.denoiser, student.family
        return TargetData(*source, *counts, device, progress, student.rule, dense, self.config.seed)


def check_config(config: DictConfig) -> None:
    """Refuse keys at the top of the configuration that nothing reads."""
    for key in config:
        if key not in GROUPS + SCALARS:
            raise ValueError(f"configuration key {key!r} is unknown; known: {', '.join(GROUPS + SCALARS)}")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int):
        raise TypeError(f"seed must be an integer, not {config.seed!r}")
    if isinstance(config.guidance, (str, bool)):
        wanted = "a number or a mapping of scale, interval and channels"
        raise TypeError(f"guidance must be {wanted}, not {config.guidance!r}")


def make_student(solver: DictConfig, teacher: Teacher) -> Student:
    """Build the family of a solver config at exactly its nfe, on the teacher's path.

    `solver.grid` is a rule, whose ends are the teacher's noise range unless stated, or a list of noise levels (on the
    command line `~solver.grid '+solver.grid=[80.0,1.5,0.002]'`: hydra puts no list in the place of a rule), all in the
    unit of `solver.path` where the student has a path of its own.
    """
    options: dict[str, Any] = plain(solver)
    name, nfe, grid, path = (options.pop(key, None) for key in ("name", "nfe", "grid", "path"))
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise TypeError(f"solver.nfe must be an integer of at least 1, not {nfe!r}")
    path = teacher.path if path is None else make_path(path)
    if isinstance(grid, list):
        for level in grid:
            if isinstance(level, bool) or not isinstance(level, (int, float)):
                raise TypeError(f"solver.grid must be a rule or a list of noise levels, which {level!r} is not")
        return check_pure_noise(Student.build(name, nfe, grid, path, options), teacher)
    stated = dict(grid or {})
    if not {"start", "end"} <= set(stated):
        start, end = teacher.noise_range_on(path)
        stated = {"start": start, "end": end, **stated}
    try:
        rule = Grid(**stated)
    except TypeError as error:
        raise ValueError(f"solver.grid cannot be used: {error}") from None
    return check_pure_noise(Student.build(name, nfe, rule, path, options), teacher)


def check_pure_noise(student: Student, teacher: Teacher) -> Student:
    """Refuse a student that asks a network that predicts noise at pure noise, where its answer says nothing.

    Raises:
        ValueError: its table tells the network alpha = 0.
    """
    family = student.family
    if teacher.prediction == "eps" and bool((family.program(family.init(0)).alpha == 0).any()):
        raise ValueError(
            f"{teacher.name} predicts noise and says nothing at pure noise, where {family.name} begins on the "
            f"{family.path.name} path; let the grid begin below it, for example with solver.grid.start=0.99"
        )
    return student


def make_fits(config: DictConfig) -> dict[str, AnyFit]:
    """Read the settings of the chosen fits, in their order.

    `config.fit` has an entry of settings for every fit; one without `kind` belongs to a fit that was not chosen.
    """
    fits: dict[str, AnyFit] = {}
    for name, options in (plain(config.get("fit")) or {}).items():
        kind = options.pop("kind", None)
        if kind is None:
            log.warning("the settings of fit.%s are not used: it is not among the fits of this run", name)
            continue
        if kind not in FITS:
            raise ValueError(f"fit.{name}.kind {kind!r} is unknown; known: {', '.join(FITS)}")
        known = [f.name for f in fields(FITS[kind])]
        for option in options:
            if option not in known:
                raise ValueError(f"fit.{name} has no setting {option!r}; it has: {', '.join(known)}")
        fits[name] = FITS[kind](**options)
    return fits


def make_module(run: Run, student: Student, start: Params | None) -> SolverDistillation:
    """Build the Lightning module of the fit with an optimizer, with its objective and schedule."""
    config, fit = run.config, run.trained
    assert fit is not None
    options: dict[str, Any] = plain(config.optimizer)
    cosine, final = options.pop("cosine", False), options.pop("final_lr", 0.0)
    optimizer = make_optimizer(options)
    optimizer([("check", torch.nn.Parameter(torch.zeros(1)))])

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fit.iterations, eta_min=final)

    arguments = {
        "family": student.family,
        "denoiser": run.denoiser,
        "objective": make_objective(config.objective, run.teacher),
        "optimizer": optimizer,
        "fit": fit,
        "scheduler": schedule if cosine else None,
        "seed": config.seed,
        "start": start,
    }
    if isinstance(fit, AdversarialFit):
        return AdversarialDistillation(**arguments, shape=run.teacher.shape)
    if isinstance(fit, RelaxedFit):
        return RelaxedDistillation(**arguments, shape=run.teacher.shape, samples=run.targets.train_samples)
    if "published_epd" in run.fits:
        return PublishedEPDDistillation(**arguments)
    return SolverDistillation(**arguments)


def make_objective(config: DictConfig, teacher: Teacher) -> Any:
    """Build the objective; one that looks at images looks at those that a latent teacher decodes."""
    objective: Any = hydra.utils.instantiate(config)
    takes_it = "decode" in getattr(objective, "__dataclass_fields__", ())
    if not takes_it or type(teacher).decode is Teacher.decode:
        return objective
    return replace(objective, decode=teacher.decode)


def make_optimizer(options: dict[str, Any]) -> OptimizerFactory:
    """Build the optimizer's factory; `lr_of` maps patterns of param names to learning rates of their own.

    Raises:
        ValueError: the optimizer does not take one of the options.
    """
    rates: dict[str, float] = options.pop("lr_of", None) or {}
    make = hydra.utils.instantiate(options)

    def build(named: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for name, value in named:
            own = [rate for pattern, rate in rates.items() if fnmatch(name, pattern)]
            groups.append({"params": [value], **({"lr": own[0]} if own else {})})
        try:
            return make(groups)
        except TypeError as error:
            raise ValueError(f"optimizer of the configuration cannot be made: {error}") from None

    return build


def make_trainer(run: Run) -> Trainer:
    """Build the Lightning trainer: one epoch of training steps, validated now and then."""
    config, output, fit = run.config, run.output, run.trained
    callbacks: list[Callback] = [last_checkpoint(output)]
    if config.trainer.get("enable_progress_bar", True):
        callbacks.append(progress_bar())
    trainer: Trainer = hydra.utils.instantiate(
        config.trainer,
        max_epochs=1,
        val_check_interval=1 if fit is None else fit.interval,
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
        enable_model_summary=False,
        logger=make_loggers(plain(config.logger), config.run_name, output, plain(config)),
        callbacks=callbacks,
        default_root_dir=str(output),
        use_distributed_sampler=False,
    )
    return trainer


def plain(config: Any) -> Any:
    """A part of the configuration as plain containers, or a number as it is."""
    if not OmegaConf.is_config(config):
        return config
    return OmegaConf.to_container(config, resolve=True)
