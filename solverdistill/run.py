"""From a composed configuration to a trained, exported, compared solver; the only module that imports hydra."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from solverdistill import families
from solverdistill.denoiser import Guided, Teacher
from solverdistill.evaluation.final import EvaluationSettings, compare_at_the_end
from solverdistill.exporting import export, make_provenance
from solverdistill.families.base import Family
from solverdistill.fits import Fitted, GreedyFit, check_greedy, fit_greedily
from solverdistill.gauss_newton import GaussNewtonFit, fit_gauss_newton, on_device
from solverdistill.grids import Grid
from solverdistill.launch import refuse_sweep_of_subprocesses
from solverdistill.module import FitSettings, OptimizerFactory, SolverDistillation
from solverdistill.module_adversarial import AdversarialDistillation, AdversarialFit
from solverdistill.module_published_epd import PublishedEPDDistillation
from solverdistill.module_relaxed import RelaxedDistillation, RelaxedFit
from solverdistill.progress import TargetProgress, console, progress_bar
from solverdistill.recording import find_checkpoint, last_checkpoint, log_once, make_loggers
from solverdistill.targets import TargetData, TargetSettings
from solverdistill.trajectories import Reference

GROUPS = ("model", "objective", "targets", "fit", "optimizer", "trainer", "logger", "evaluation", "solver")
FITS: dict[str, type[FitSettings] | type[GreedyFit] | type[GaussNewtonFit]] = {
    "gradient": FitSettings,
    "published_epd": FitSettings,
    "adversarial": AdversarialFit,
    "relaxed": RelaxedFit,
    "greedy": GreedyFit,
    "gauss_newton": GaussNewtonFit,
}
Fit = FitSettings | GreedyFit | GaussNewtonFit
SCALARS = ("seed", "guidance", "ckpt_path", "run_name", "output_dir")


@dataclass(frozen=True)
class Student:
    """A family and the grid rule that it was built from, None where its levels were listed."""

    family: Family
    rule: Grid | None


def train(config: DictConfig) -> dict[str, float]:
    """Train, export and compare one student, as `train.py` does.

    Writes solver.json (best state on held-out seeds), solver-last.json, checkpoints, the training log, and unless
    `evaluation.enabled` is false metrics.csv, metrics.md and figures, all into `config.output_dir`.

    Returns:
        Validation RMSE of the exported solver, and its nfe and depth.
    Raises:
        ValueError, TypeError, FileNotFoundError: a setting cannot be used; the message says which and what would do.
    """
    check_config(config)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices and tips; the run says its own things
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # a resumed run has a folder of its own
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # lightning's own use of torch
    seed_everything(config.seed, verbose=False)
    teacher: Teacher = hydra.utils.instantiate(config.model)
    denoiser = Guided(teacher, config.guidance, teacher.null_cond)
    student = make_student(config.solver, teacher)
    fit = make_fit(config)
    targets = _plain(config.targets)
    settings = TargetSettings(**{**targets, "reference": Reference(**targets["reference"])})
    evaluation = EvaluationSettings(**_plain(config.evaluation))
    module = make_module(config, student, denoiser, fit, teacher, settings) if isinstance(fit, FitSettings) else None
    output = Path(config.output_dir)
    checkpoint = find_checkpoint(config.ckpt_path, output)
    if isinstance(fit, GreedyFit):
        check_greedy(student.family)
    if module is None and checkpoint is not None:
        raise ValueError(f"fit={config.fit.kind} has no checkpoints to resume from; leave ckpt_path out")
    trainer = make_trainer(config, fit, output)
    refuse_sweep_of_subprocesses(trainer, HydraConfig.initialized() and _sweeping())
    device = trainer.strategy.root_device
    denoiser.to(device)
    data = TargetData(
        settings,
        teacher,
        denoiser,
        student.family,
        fit.batch_size,
        fit.iterations,
        device,
        TargetProgress() if trainer.is_global_zero else None,
        student.rule,
        isinstance(fit, GreedyFit) or getattr(getattr(module, "objective", None), "needs_reference", False),
    )
    if trainer.is_global_zero:
        say_hello(config, teacher, student.family, settings)
    if module is None:
        fitted = fit_without_trainer(fit, student.family, denoiser, data, config.seed, device)
        log_once(trainer, {"validation/rmse": fitted.rmse})
    else:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        fitted = Fitted(module.best_params, module.current_params(), module.best_rmse)
    test = data.split("test") if evaluation.enabled else None  # made by all processes together
    if trainer.is_global_zero:
        export(output, student.family, fitted, make_provenance(_plain(config), teacher, settings, fitted))
        if test is not None:
            program = student.family.program(fitted.best)
            compare_at_the_end(evaluation, output, config.solver.name, program, teacher, denoiser, test)
    return {"rmse": fitted.rmse, "nfe": float(student.family.nfe), "depth": float(student.family.depth)}


def fit_without_trainer(
    fit: Any, family: Family, denoiser: Any, data: TargetData, seed: int, device: torch.device
) -> Fitted:
    """Run a fit that needs no optimizer; with several processes each of them computes the same."""
    train = data.split("train")
    if isinstance(fit, GreedyFit):
        batch = train.take(torch.arange(min(fit.batch_size, len(train))))
        return fit_greedily(family, denoiser, batch, data.val_dataloader(), device)
    batch, held_out = (on_device(split.batch, device) for split in (train, data.split("validation")))
    params, report = fit_gauss_newton(family, denoiser, batch, held_out, replace(fit, seed=seed))
    console().print(
        f"Levenberg-Marquardt: validation RMSE {report.history[0].rmse:.4f} -> {report.rmse:.4f} in "
        f"{len(report.history) - 1} iterations, {report.evaluations:,.0f} evaluations, {report.seconds:.0f} s; "
        f"derivatives by {report.derivatives}, stopped by {report.stopped}"
    )
    return Fitted(params, params, report.rmse)


def check_config(config: DictConfig) -> None:
    """Refuse keys at the top of the configuration that nothing reads."""
    for key in config:
        if key not in GROUPS + SCALARS:
            raise ValueError(f"configuration key {key!r} is unknown; known: {', '.join(GROUPS + SCALARS)}")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int):
        raise TypeError(f"seed must be an integer, not {config.seed!r}")
    if isinstance(config.guidance, (str, bool)):
        raise TypeError(f"guidance must be a number, not {config.guidance!r}")


def make_student(solver: DictConfig, teacher: Teacher) -> Student:
    """Build the family of a solver config at exactly its nfe, on the teacher's path.

    `solver.grid` is a rule, whose ends are the teacher's noise range unless stated, or a list of noise levels (on the
    command line `~solver.grid '+solver.grid=[80.0,1.5,0.002]'`: hydra puts no list in the place of a rule).
    """
    options: dict[str, Any] = _plain(solver)
    name, nfe, grid, path = (options.pop(key, None) for key in ("name", "nfe", "grid", "path"))
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise TypeError(f"solver.nfe must be an integer of at least 1, not {nfe!r}")
    path = teacher.path if path is None else path
    if isinstance(grid, list):
        return Student(_family_on(grid, name, nfe, path, options), None)
    start, end = teacher.noise_range
    try:
        rule = Grid(**{"start": start, "end": end, **(grid or {})})
    except TypeError as error:
        raise ValueError(f"solver.grid cannot be used: {error}") from None
    steps = families.steps_for_nfe(name, nfe, rule, path, **options)
    return Student(families.build(name, rule.with_steps(steps), path, **options), rule.with_steps(steps))


def _family_on(levels: list[Any], name: str, nfe: int, path: Any, options: dict[str, Any]) -> Family:
    """The family on listed noise levels, whose number must be that of its nfe."""
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, (int, float)):
            raise TypeError(f"solver.grid must be a rule or a list of noise levels, which {level!r} is not")
    family = families.build(name, levels, path, **options)
    if family.nfe != nfe:
        raise ValueError(
            f"solver.grid lists {len(levels)} noise levels, on which {name} spends {family.nfe} evaluations and not "
            f"solver.nfe={nfe}; set solver.nfe={family.nfe} or list another number of levels"
        )
    return family


def make_fit(config: DictConfig) -> Fit:
    """Read the fit settings of their kind."""
    options: dict[str, Any] = _plain(config.fit)
    kind = options.pop("kind", None)
    if kind not in FITS:
        raise ValueError(f"fit.kind {kind!r} is unknown; known: {', '.join(FITS)}")
    settings = FITS[kind]
    known = [f.name for f in fields(settings)]
    for option in options:
        if option not in known:
            raise ValueError(f"fit={kind} has no setting {option!r}; it has: {', '.join(known)}")
    return settings(**options)


def make_module(
    config: DictConfig, student: Student, denoiser: Any, fit: FitSettings, teacher: Teacher, targets: TargetSettings
) -> SolverDistillation:
    """Build the Lightning module with its objective, optimizer and schedule."""
    options: dict[str, Any] = _plain(config.optimizer)
    cosine, final = options.pop("cosine", False), options.pop("final_lr", 0.0)
    optimizer = make_optimizer(options)
    optimizer([("check", torch.nn.Parameter(torch.zeros(1)))])

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fit.iterations, eta_min=final)

    arguments = {
        "family": student.family,
        "denoiser": denoiser,
        "objective": hydra.utils.instantiate(config.objective),
        "optimizer": optimizer,
        "fit": fit,
        "scheduler": schedule if cosine else None,
        "seed": config.seed,
    }
    if isinstance(fit, AdversarialFit):
        return AdversarialDistillation(**arguments, shape=teacher.shape)
    if isinstance(fit, RelaxedFit):
        return RelaxedDistillation(**arguments, shape=teacher.shape, samples=targets.train_samples)
    if config.fit.kind == "published_epd":
        return PublishedEPDDistillation(**arguments)
    return SolverDistillation(**arguments)


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


def make_trainer(config: DictConfig, fit: Fit, output: Path) -> Trainer:
    """Build the Lightning trainer: one epoch of `fit.iterations` batches, validated now and then."""
    callbacks: list[Callback] = [last_checkpoint(output)]
    if config.trainer.get("enable_progress_bar", True):
        callbacks.append(progress_bar())
    trainer: Trainer = hydra.utils.instantiate(
        config.trainer,
        max_epochs=1,
        val_check_interval=fit.interval,
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
        enable_model_summary=False,
        logger=make_loggers(_plain(config.logger), config.run_name, output, _plain(config)),
        callbacks=callbacks,
        default_root_dir=str(output),
        use_distributed_sampler=False,
    )
    return trainer


def say_hello(config: DictConfig, teacher: Teacher, family: Family, settings: TargetSettings) -> None:
    """One line that says what is about to happen."""
    count = sum(value.numel() for value in family.init(0).values())
    reference = f"{settings.reference.solver}, {settings.reference.steps} steps"
    console().print(
        f"[bold]{family.name}[/bold] for [bold]{teacher.name}[/bold]: {count} numbers, nfe {family.nfe}, "
        f"depth {family.depth}, {family.steps} steps on the {family.path.name} path; reference {reference}"
    )


def _sweeping() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=True)
