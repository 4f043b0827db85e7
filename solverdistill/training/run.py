"""From a composed configuration to a trained, exported, compared solver; the only module that imports hydra."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer, seed_everything
from omegaconf import DictConfig

from solverdistill import families
from solverdistill.evaluation.after_training import compare_at_the_end
from solverdistill.families.base import Family
from solverdistill.families.student import Student
from solverdistill.fits.gradient.module import FitSettings
from solverdistill.fits.report import FitReport, Meter
from solverdistill.references.datamodule import TargetData
from solverdistill.references.targets import Targets
from solverdistill.support.progress import FitProgress, TargetProgress, console
from solverdistill.training.configuration import Run, make_module, make_trainer, plain
from solverdistill.training.exporting import export, make_provenance, write_reports
from solverdistill.training.launch import refuse_sweep_of_subprocesses, start_processes
from solverdistill.training.recording import find_checkpoint, log_fit
from solverdistill.training.stages import AnyFit, Standing, run_direct


def train(config: DictConfig) -> dict[str, float]:
    """Fit, export and compare one student, as `train.py` does.

    Writes solver.json (best state on held-out seeds), solver-last.json, checkpoints, the training log, fits.csv, and
    unless `evaluation.enabled` is false metrics.csv, metrics.md and figures, all into `config.output_dir`.

    Returns:
        Validation RMSE of the exported solver, and its nfe and depth.
    Raises:
        ValueError, TypeError, FileNotFoundError: a setting cannot be used; the message says which and what would do.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices and tips; the run says its own things
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # a resumed run has a folder of its own
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # lightning's own use of torch
    seed_everything(config.seed, verbose=False)
    run = Run.of(config)
    refuse_unused(run.fits)
    checkpoint = find_checkpoint(config.ckpt_path, run.output)
    if checkpoint is not None and run.trained is None:
        raise ValueError(f"fit=[{','.join(run.fits)}] has no checkpoints to resume from; leave ckpt_path out")
    if run.trained is not None:
        make_module(run, run.student, None)  # refuses what cannot be trained before anything is computed
    trainer = make_trainer(run)
    refuse_sweep_of_subprocesses(trainer, HydraConfig.initialized() and _sweeping())
    start_processes(trainer, required=any(not isinstance(fit, FitSettings) for fit in run.fits.values()))
    device = trainer.strategy.root_device
    run.denoiser.to(device)
    student = run.student if checkpoint is None else run.student.rebuilt(family_of_checkpoint(checkpoint, run.student))
    data = run.data(student, device, TargetProgress() if trainer.is_global_zero else None)
    if trainer.is_global_zero:
        say_hello(run)
    standing = fit_all(run, Standing(student), data, trainer, checkpoint)
    test = data.split("test") if run.evaluation.enabled else None  # made by all processes together
    if trainer.is_global_zero:
        conclude(run, standing, test)
    family = standing.student.family
    return {"rmse": float(standing.rmse or 0.0), "nfe": float(family.nfe), "depth": float(family.depth)}


def fit_all(run: Run, standing: Standing, data: TargetData, trainer: Trainer, checkpoint: str | None) -> Standing:
    """Run every fit; a resumed run goes on with the one that has checkpoints."""
    teacher = Meter(data.device)
    with teacher.measure("teacher", 0):
        for split in ("train", "validation"):
            data.split(split)
    teacher.add("teacher", run.denoiser.images)
    standing = replace(standing, reports=(FitReport.of("targets", [], teacher, "all made"),))
    if trainer.is_global_zero and run.denoiser.images:
        console().print(standing.reports[0].summary())
    resumed = checkpoint is not None
    for name, fit in run.fits.items():
        before = standing
        if isinstance(fit, FitSettings):
            standing, resumed = descend(run, standing, data, trainer, checkpoint), False
        elif not resumed:  # otherwise done before the run was killed
            with FitProgress(name, trainer.is_global_zero) as progress:
                standing = run_direct(fit, standing, run.denoiser, data, run.config.seed, progress)
        if standing is before:
            continue
        data = data.for_student(standing.student.family)
        if trainer.is_global_zero:
            console().print(standing.reports[-1].summary())
            if not isinstance(fit, FitSettings):
                log_fit(trainer, standing.reports[-1])
    return standing


def descend(run: Run, standing: Standing, data: TargetData, trainer: Trainer, checkpoint: str | None) -> Standing:
    """Run the fit with an optimizer."""
    module = make_module(run, standing.student, standing.params)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return replace(standing.after(module.report(), module.best_params), last=module.current_params())


def conclude(run: Run, standing: Standing, test: Targets | None) -> None:
    """Export the best state and compare it with classical solvers."""
    family, name = standing.student.family, run.config.solver.name
    best = family.init(run.config.seed) if standing.params is None else standing.params
    last = best if standing.last is None else standing.last
    provenance = make_provenance(plain(run.config), run.teacher, run.targets, standing.reports)
    export(run.output, family, best, last, provenance)
    write_reports(run.output / "fits.csv", standing.reports)
    if test is not None:
        compare_at_the_end(run.evaluation, run.output, name, family.program(best), run.teacher, run.denoiser, test)


def refuse_unused(fits: Mapping[str, AnyFit]) -> None:
    """Refuse an objective or an optimizer on the command line that no chosen fit would look at.

    Raises:
        ValueError: there is one; the message says which fit would.
    """
    if not HydraConfig.initialized() or any(isinstance(fit, FitSettings) for fit in fits.values()):
        return
    for override in HydraConfig.get().overrides.task:
        group = override.lstrip("+~").split("=")[0].split(".")[0]
        if group in ("objective", "optimizer"):
            chosen = ",".join(fits)
            raise ValueError(
                f"{override}: only gradient descent has an {group}, and this run has fit=[{chosen}]; "
                f"add it with fit=[{chosen},gradient]"
            )


def say_hello(run: Run) -> None:
    """One line that says what is about to happen."""
    family, settings = run.student.family, run.targets.reference
    count = sum(value.numel() for value in family.init(0).values())
    console().print(
        f"[bold]{family.name}[/bold] for [bold]{run.teacher.name}[/bold]: {count} numbers, nfe {family.nfe}, "
        f"depth {family.depth}, {family.steps} steps on the {family.path.name} path; reference {settings.solver}, "
        f"{settings.steps} steps; fits: {', '.join(run.fits)}"
    )


def family_of_checkpoint(path: str, student: Student) -> Family:
    """The family that a killed run was training, whose start may have won a race."""
    stored = torch.load(path, map_location="cpu", weights_only=True)["family"]
    return families.rebuild(stored, student.family)


def _sweeping() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN
