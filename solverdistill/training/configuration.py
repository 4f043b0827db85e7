"""Reads a composed configuration, as plain containers: the teacher, the student, the fits, the targets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from solverdistill import families
from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import GuidanceRule, make_guided, settled_guidance
from solverdistill.denoisers.wrappers import Counted
from solverdistill.families.base import Params
from solverdistill.families.student import Student
from solverdistill.fits.protocol import Descent, Fit, FitPlan, Standing
from solverdistill.fits.registry import make_fit
from solverdistill.fits.report import BACKWARD_COST
from solverdistill.references.choice import Choice
from solverdistill.references.choosing import choose_reference
from solverdistill.references.serving import TargetData
from solverdistill.references.solving import Reference
from solverdistill.references.targets import Progress, TargetSettings
from solverdistill.support.instantiate import instantiate
from solverdistill.support.type_checks import LARGEST_SEED, check_range
from solverdistill.training.descent import make_objective, make_optimizer, make_schedule
from solverdistill.training.starting import Start, read_start
from solverdistill.training.students import AUTO, check_pure_noise, make_student, make_students, with_points

GROUPS = ("model", "objective", "targets", "fit", "optimizer", "trainer", "logger", "evaluation", "solver")
SCALARS = ("seed", "guidance", "start", "budget", "ckpt_path", "run_name", "output_dir")
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
        rivals: Students of other families that the run chooses among.
        choice: The reference, where it is chosen already.
    """

    config: Mapping[str, Any]
    teacher: Teacher
    denoiser: Counted
    student: Student
    fits: dict[str, Fit]
    targets: TargetSettings
    params: Params | None = None
    rivals: tuple[Student, ...] = ()
    choice: Choice | None = None

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
        fits, targets = make_fits(config), make_target_settings(config["targets"])
        if student is None:
            student, *rivals = make_students(config["solver"], guided)
            fits, targets = with_points(config["solver"], fits, targets)
        else:
            student, rivals = check_pure_noise(student, guided), []
        wrapped: Any = denoiser
        return cls(config, guided, Counted(wrapped), student, fits, targets, params, tuple(rivals))

    def data(self, student: Student, device: torch.device | str, progress: Progress | None) -> TargetData:
        """The targets of the run; what is open of their reference is chosen here, by measuring."""
        dense = any(fit.needs_trajectories for fit in self.fits.values())
        if self.descends:
            dense = dense or getattr(instantiate(self.config["objective"], "objective"), "needs_reference", False)
        choice = self.choice or self.choose(student, device, progress)
        settings = replace(self.targets, reference=choice.reference, measure=())
        source = settings, self.teacher, self.denoiser, student.family
        return TargetData(*source, device, progress, student.rule, dense, choice)

    def choose(
        self, student: Student, device: torch.device | str, progress: Progress | None = None, size: int | None = None
    ) -> Choice:
        """The reference of the run, and what is known of its error; `size` is what the run takes, where it is known."""
        of = self.targets, self.teacher, self.denoiser, student.family.depth, size or self.size()
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
        return FitPlan(*of, descent, held_out, self.rivals)


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse keys at the top of the configuration that nothing reads."""
    for key in config:
        if key not in GROUPS + SCALARS:
            raise ValueError(f"configuration key {key!r} is unknown; known: {', '.join(GROUPS + SCALARS)}")
    if isinstance(config["seed"], bool) or not isinstance(config["seed"], int):
        raise TypeError(f"seed must be an integer, not {config['seed']!r}")
    check_range("seed", config["seed"], least=0, most=LARGEST_SEED)
    if config["guidance"] is not None:
        GuidanceRule.of(config["guidance"])


def begin_at(config: Mapping[str, Any], asked: Mapping[str, Any], teacher: Teacher) -> Start:
    """The student of the solver file that a run begins at.

    Raises:
        ValueError: it does not go with what was asked for.
    """
    name = asked.get("name")
    own = name is not None and name not in (*families.ROSTER, *families.ALIASES, AUTO)
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
