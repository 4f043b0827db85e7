"""From a composed configuration to a trained, exported, compared solver: what the command line does."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from solverdistill import families
from solverdistill.evaluation.after_training import EvaluationSettings, compare_at_the_end
from solverdistill.families.learned.parallel import Parallel
from solverdistill.families.student import Student
from solverdistill.fits.protocol import Fit, Standing
from solverdistill.fits.report import FitReport
from solverdistill.programs.program import SolverProgram
from solverdistill.references.choice import Choice
from solverdistill.support.progress import TargetProgress
from solverdistill.training.budget import COMPARISON, Budget, descending, per_reference, within
from solverdistill.training.configuration import Run, check_config
from solverdistill.training.costs import Costs, reference_cost
from solverdistill.training.descent import refuse_unused
from solverdistill.training.exporting import export, make_provenance, write_reports
from solverdistill.training.isolation import own_surroundings
from solverdistill.training.launch import refuse_sweep_of_subprocesses, start_processes
from solverdistill.training.recording import find_checkpoint, log_fit, read_checkpoint
from solverdistill.training.screen import Screen, say_costs, say_hello, say_spent
from solverdistill.training.stages import Watcher, fit_all
from solverdistill.training.starting import asked_for
from solverdistill.training.trainer import make_trainer

FEWEST_TESTED = 16  # samples of a comparison
log = logging.getLogger(__name__)


def train(config: Mapping[str, Any] | DictConfig) -> dict[str, float]:
    """Fit, export and compare one student, as `train.py` does.

    Writes solver.json (best state on held-out seeds), solver-last.json, checkpoints, the training log, fits.csv, and
    unless `evaluation.enabled` is false metrics.csv, metrics.md and figures, all into `config.output_dir`.

    Returns:
        Validation RMSE of the exported solver, and its nfe and depth.
    Raises:
        ValueError, TypeError, FileNotFoundError: a setting cannot be used; the message says which and what would do.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    check_config(settings)
    with own_surroundings(settings["seed"]):
        return _train(settings)


def _train(config: Mapping[str, Any]) -> dict[str, float]:
    run, output = Run.of(config, asked=asked_settings(config)), Path(config["output_dir"])
    config = run.config
    evaluation = EvaluationSettings(**config["evaluation"])
    budget = None if config["budget"] is None else Budget.read(config["budget"])
    if HydraConfig.initialized() and not run.descends:
        refuse_unused((override.lstrip("+~") for override in HydraConfig.get().overrides.task), run.fits)
    checkpoint = find_checkpoint(config["ckpt_path"], output)
    if checkpoint is not None and not run.descends:
        raise ValueError(f"fit=[{','.join(run.fits)}] has no checkpoints to resume from; leave ckpt_path out")
    plan = run.plan(lambda fit: trainer, checkpoint)
    plan.check()
    student = run.student if checkpoint is None else student_of_checkpoint(checkpoint, (run.student, *run.rivals))
    trainer = make_trainer(config, next((fit for fit in run.fits.values() if fit.resumes), None), output)
    refuse_sweep_of_subprocesses(trainer, HydraConfig.initialized() and _sweeping())
    start_processes(trainer, required=any(not fit.resumes for fit in run.fits.values()))
    first, device = trainer.is_global_zero, trainer.strategy.root_device
    run.denoiser.to(device)
    if budget is not None:
        shown = TargetProgress() if first else None
        run = within(run, budget, stated_settings(), device, shown, evaluation.enabled)
        run, evaluation = with_comparison(run, evaluation, stated_settings())
        config, plan = run.config, run.plan(lambda fit: trainer, checkpoint)
    data = run.data(student, device, TargetProgress() if first else None)
    watcher, costs = Watcher(), None
    of = student.family.nfe, student.family.depth
    fits = sum(fit.expected(plan) for fit in plan.fits.values())
    if evaluation.enabled:
        compared = evaluation.samples(*of, run.targets.test_samples, reference_cost(data), fits)
        data.settings = replace(data.settings, test_samples=compared)
    if first:
        say_hello(run)
        comparison = evaluation.expected(*of, data.settings.test_samples) if evaluation.enabled else None
        costs = say_costs(run, plan, data, comparison)
        watcher = Logged(trainer, costs)
    standing = fit_all(plan, replace(run.begin, student=student), data, watcher)
    if costs is not None:
        say_spent(costs, standing.reports)
    solver = conclude(run, standing, output, data.choice) if first else None  # before anything else may fail
    test = data.split("test") if evaluation.enabled else None  # made by all processes together
    if solver is not None and test is not None:
        compare_at_the_end(evaluation, output, *solver, run.teacher, run.denoiser, test, data.choice.error)
    family = standing.student.family
    return {"rmse": float(standing.rmse or 0.0), "nfe": float(family.nfe), "depth": float(family.depth)}


def with_comparison(run: Run, settings: EvaluationSettings, stated: Collection[str]) -> tuple[Run, EvaluationSettings]:
    """A run and its comparison on as many test samples as a tenth of its budget pays for.

    Where these are too few the curves are left out, and then all of it.

    Args:
        run: As planned by `within`.
        settings: Of the comparison.
        stated: Settings that were given by hand.
    """
    family, most = run.student.family, COMPARISON * run.config["planned_evaluations"]
    if not settings.enabled or {"targets.test_samples", "evaluation"} & set(stated):
        return run, settings
    for tried in (settings, replace(settings, curve_nfe=[])):
        for samples in descending(run.targets.test_samples, FEWEST_TESTED):
            if samples * per_reference(run) + tried.expected(family.nfe, family.depth, samples) <= most:
                return replace(run, targets=replace(run.targets, test_samples=samples)), tried
    log.warning(
        "no comparison at the end: it would take more than a tenth of the budget; evaluation=default brings it back"
    )
    return run, replace(settings, enabled=False)


class Logged(Screen):
    """Keeps in the training log what it shows.

    Args:
        trainer: Has the loggers.
        costs: What the run was expected to cost.
    """

    def __init__(self, trainer: Trainer, costs: Costs) -> None:
        super().__init__(costs)
        self._trainer = trainer

    def fitted(self, fit: Fit, report: FitReport) -> None:
        super().fitted(fit, report)
        if not fit.resumes:  # the others write to the log as they go
            log_fit(self._trainer, report)


def conclude(run: Run, standing: Standing, output: Path, choice: Choice) -> tuple[str, SolverProgram]:
    """Export the best state; its name, and its program, are what is compared with classical solvers."""
    family, config = standing.student.family, run.config
    best = family.init(config["seed"]) if standing.params is None else standing.params
    last = best if standing.last is None else standing.last
    provenance = make_provenance(config, run.teacher, choice, standing.reports)
    export(output, family, best, last, provenance)
    write_reports(output / "fits.csv", standing.reports)
    if not math.isfinite(standing.rmse or 0.0):
        log.warning("the teacher gives no finite end points for %s from the held-out samples", family.name)
    # Placements may end at the sequential solver; one of your own goes by its dotted name.
    name = family.name if family.name in families.ROSTER else config["solver"]["name"]
    return name, family.program(best)


def student_of_checkpoint(path: str, students: Sequence[Student]) -> Student:
    """The student that a killed run was training, whose start may have won a race.

    Args:
        path: The checkpoint.
        students: Those that the run begins with.
    Raises:
        ValueError: it is none that this run could have come to.
    """
    stored = read_checkpoint(path)["family"]
    for student in students:
        own = student.family
        if stored["name"] == own.hyperparameters()["name"]:
            family = families.rebuild(stored, own)
            if family.nfe == own.nfe:
                return student.rebuilt(family)
        elif isinstance(own, Parallel):  # a sequential solver may have won over all placements
            family = families.rebuild(stored)
            if family.depth == own.depth:
                return student.rebuilt(family)
    family = families.rebuild(stored, students[0].family)
    if len(students) > 1 and isinstance(family, Parallel) and family.depth == students[0].family.depth:
        return Student.of(family)  # points beside the evaluations of one of them
    these = " or ".join(f"{student.family.name} with nfe {student.family.nfe}" for student in students)
    raise ValueError(
        f"the checkpoint {path} holds {stored['name']} with nfe {family.nfe}, and this run is of {these}; name the "
        "checkpoint of the killed run in ckpt_path, or say solver= and start= as it did"
    )


def asked_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the solver that the command line states."""
    return asked_for(HydraConfig.get().overrides.task, config["solver"]) if HydraConfig.initialized() else {}


def stated_settings() -> list[str]:
    """Settings that the command line states, with their groups."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return [override.lstrip("+~").split("=")[0] for override in overrides]


def _sweeping() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN
