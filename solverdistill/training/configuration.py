"""Reads a composed configuration, as plain containers: the teacher, the student, the fits, the targets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from solverdistill import families
from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import make_guided, settled_guidance
from solverdistill.denoisers.wrappers import Counted
from solverdistill.families.base import Params
from solverdistill.families.student import Student
from solverdistill.fits.protocol import Descent, Fit, FitPlan, Standing
from solverdistill.fits.registry import make_fit
from solverdistill.fits.report import BACKWARD_COST
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import make_path
from solverdistill.references.choice import Choice
from solverdistill.references.choosing import choose_reference
from solverdistill.references.serving import TargetData
from solverdistill.references.solving import Reference
from solverdistill.references.targets import Progress, TargetSettings
from solverdistill.support.instantiate import MISSING, instantiate
from solverdistill.training.descent import make_objective, make_optimizer, make_schedule
from solverdistill.training.starting import Start, read_start

GROUPS = ("model", "objective", "targets", "fit", "optimizer", "trainer", "logger", "evaluation", "solver")
SCALARS = ("seed", "guidance", "start", "ckpt_path", "run_name", "output_dir")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a configuration stands for, built but not yet begun.

    Args:
        config: The configuration, as plain containers.
        teacher: The frozen network.
        denoiser: The teacher, possibly guided, with its evaluations counted.
        student: The student at exactly its nfe.
        fits: Settings of the fits, in their order.
        targets: Settings of the targets.
        params: Params of a solver file to begin at; None for the student's own initial ones.
    """

    config: Mapping[str, Any]
    teacher: Teacher
    denoiser: Counted
    student: Student
    fits: dict[str, Fit]
    targets: TargetSettings
    params: Params | None = None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        teacher: Teacher | None = None,
        student: Student | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> Run:
        """Read a configuration and load its teacher.

        Args:
            config: As composed, plain.
            teacher: A live teacher in place of `config["model"]`.
            student: A live student in place of `config["solver"]`.
            asked: Settings of the solver that were stated and are no defaults, for a run that begins at a file.
        """
        check_config(config)
        loaded: Teacher = instantiate(config["model"], "model") if teacher is None else teacher
        config = {**config, "guidance": settled_guidance(loaded, config["guidance"])}
        guided, denoiser = make_guided(loaded, config["guidance"])
        params = None
        if config.get("start") is not None:
            student, params = begin_at(config, asked or {}, guided)
            warn_of_defaults(config, asked or {}, student.family.name)
            config = {**config, "solver": {**student.family.hyperparameters(), "nfe": student.family.nfe}}
        chosen = make_student(config["solver"], guided) if student is None else check_pure_noise(student, guided)
        wrapped: Any = denoiser
        settings = make_fits(config), make_target_settings(config["targets"])
        return cls(config, guided, Counted(wrapped), chosen, *settings, params)

    def data(self, student: Student, device: torch.device | str, progress: Progress | None) -> TargetData:
        """The targets of the run; what is open of their reference is chosen here, by measuring."""
        dense = any(fit.needs_trajectories for fit in self.fits.values())
        if self.descends:
            dense = dense or getattr(instantiate(self.config["objective"], "objective"), "needs_reference", False)
        choice = self.choose(student, device, progress)
        settings = replace(self.targets, reference=choice.reference, measure=())
        source = settings, self.teacher, self.denoiser, student.family
        return TargetData(*source, device, progress, student.rule, dense, choice)

    def choose(self, student: Student, device: torch.device | str, progress: Progress | None = None) -> Choice:
        """The reference of the run, and what is known of its error."""
        of = self.targets, self.teacher, self.denoiser, student.family.depth, self.size()
        return choose_reference(*of, device, progress)

    def size(self) -> int:
        """About how many evaluations the run takes, in forward equivalents: references, and fits that say how long."""
        settings = self.targets
        size = (settings.train_samples + settings.validation_samples) * settings.reference.steps
        for fit in self.fits.values():
            batch = getattr(fit, "samples", None) or getattr(fit, "batch_size", settings.train_samples)
            asked = (1 + BACKWARD_COST) * getattr(fit, "iterations", 0) * batch * self.student.family.nfe
            size += round(min(asked, getattr(fit, "evaluations", None) or asked))
        return size

    @property
    def begin(self) -> Standing:
        """Where the fits begin."""
        return Standing(self.student, self.params)

    @property
    def descends(self) -> bool:
        """Whether a fit has an optimizer, and so checkpoints."""
        return any(fit.resumes for fit in self.fits.values())

    def plan(self, trainer: Any, checkpoint: str | None = None) -> FitPlan:
        """What the fits work on.

        Args:
            trainer: Makes the Lightning trainer of a fit with an optimizer.
            checkpoint: File to go on from.
        """
        config, descent = self.config, None
        if self.descends:
            optimizer, schedule = make_optimizer(config["optimizer"]), make_schedule(config["optimizer"])
            objective = make_objective(config["objective"], self.teacher)
            descent = Descent(objective, optimizer, schedule, trainer, checkpoint)
        train, held_out = self.targets.train_samples, self.targets.validation_samples
        of = self.student, self.denoiser, self.fits, self.teacher.shape, train, config["seed"]
        return FitPlan(*of, descent, held_out)


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse keys at the top of the configuration that nothing reads."""
    for key in config:
        if key not in GROUPS + SCALARS:
            raise ValueError(f"configuration key {key!r} is unknown; known: {', '.join(GROUPS + SCALARS)}")
    if isinstance(config["seed"], bool) or not isinstance(config["seed"], int):
        raise TypeError(f"seed must be an integer, not {config['seed']!r}")
    if isinstance(config["guidance"], (str, bool)):
        wanted = "a number or a mapping of scale, interval and channels"
        raise TypeError(f"guidance must be {wanted}, not {config['guidance']!r}")


def begin_at(config: Mapping[str, Any], asked: Mapping[str, Any], teacher: Teacher) -> Start:
    """The student of the solver file that a run begins at.

    Raises:
        ValueError: it does not go with what was asked for.
    """
    name = asked.get("name")
    own = name is not None and name not in (*families.ROSTER, *families.ALIASES)
    configured = make_student(config["solver"], teacher).family if own else None
    return read_start(config["start"], asked, teacher, configured)


def warn_of_defaults(config: Mapping[str, Any], asked: Mapping[str, Any], name: str) -> None:
    """Say where gradient descent on the solver of a file has the objective and optimizer of another one."""
    other = config["solver"]["name"]
    if "name" not in asked and name != other and any(fit.resumes for fit in make_fits(config).values()):
        log.warning(
            "start=%s begins as %s, and objective and optimizer are the defaults of %s; say solver=%s for its own",
            *(config["start"], name, other, name),
        )


def make_target_settings(options: Mapping[str, Any]) -> TargetSettings:
    """The settings of the targets, from those of a configuration.

    What is null of the reference's grid and steps is open, and measured (`targets=auto`), but for a nested reference,
    which has the student's grid, and for dopri5, which takes the steps that it needs.

    Raises:
        ValueError, TypeError: the reference is no mapping, or rho is given for a grid that is open.
    """
    if not isinstance(options["reference"], Mapping):
        raise TypeError(f"targets.reference is a mapping, as solver=heun, steps=40, not {options['reference']!r}")
    reference = {"solver": "ipndm", **options["reference"]}
    measure = tuple(name for name in ("grid", "steps") if name in reference and reference[name] is None)
    rho = reference.get("rho")
    if "grid" in measure and rho is not None:
        raise ValueError(f"targets.reference.rho={rho:g} is that of no grid; set targets.reference.grid as well")
    known = {name: value for name, value in reference.items() if name not in measure}
    if "grid" in measure:
        known["rho"] = None
    if reference.get("nested") is not None or reference["solver"] == "dopri5":
        measure = ()
    return TargetSettings(**{**options, "reference": Reference(**known), "measure": measure})


def make_student(solver: Mapping[str, Any], teacher: Teacher) -> Student:
    """Build the family of a solver config at exactly its nfe, or its depth, on the teacher's path.

    `solver.grid` is a rule, whose ends are the teacher's noise range unless stated, or a list of noise levels (on the
    command line `~solver.grid '+solver.grid=[80.0,1.5,0.002]'`: hydra puts no list in the place of a rule), all in the
    unit of `solver.path` where the student has a path of its own.
    """
    options = deepcopy(dict(solver))
    name, nfe, depth, grid, path = (options.pop(key, None) for key in ("name", "nfe", "depth", "grid", "path"))
    if name == MISSING:
        raise ValueError("solver.name must be given: the dotted name of a family of your own, my_package.MyFamily")
    if nfe is not None and depth is not None:
        raise ValueError(f"solver.nfe={nfe} and solver.depth={depth} both say what a sample costs; set one to null")
    cost, wanted = ("nfe", nfe) if depth is None else ("depth", depth)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise TypeError(f"solver.{cost} must be an integer of at least 1, not {wanted!r}")
    path = teacher.path if path is None else make_path(path)
    if isinstance(grid, list):
        for level in grid:
            if isinstance(level, bool) or not isinstance(level, (int, float)):
                raise TypeError(f"solver.grid must be a rule or a list of noise levels, which {level!r} is not")
        return check_pure_noise(Student.build(name, wanted, grid, path, options, cost), teacher)
    stated = dict(grid or {})
    if not {"start", "end"} <= set(stated):
        start, end = teacher.noise_range_on(path)
        stated = {"start": start, "end": end, **stated}
    try:
        rule = Grid(**stated)
    except TypeError as error:
        raise ValueError(f"solver.grid cannot be used: {error}") from None
    return check_pure_noise(Student.build(name, wanted, rule, path, options, cost), teacher)


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


def make_fits(config: Mapping[str, Any]) -> dict[str, Fit]:
    """Read the settings of the chosen fits, in their order.

    `config["fit"]` has an entry of settings for every fit; one without `kind` belongs to a fit that was not chosen.
    """
    fits: dict[str, Fit] = {}
    for name, options in (config.get("fit") or {}).items():
        if options.get("kind") is None:
            log.warning("the settings of fit.%s are not used: it is not among the fits of this run", name)
        else:
            fits[name] = make_fit(name, options)
    return fits
