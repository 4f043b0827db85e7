"""What a fit is: settings that can be checked, and a run that goes from one standing to the next.

A fit is a frozen dataclass of its settings with the members of `Fit`. A new one is one file, one line in
`fits.registry` and one in configs/fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from solverdistill.families.base import Params
from solverdistill.families.student import Student
from solverdistill.fits.batches import on_device
from solverdistill.fits.report import FitReport
from solverdistill.references.batch import Batch
from solverdistill.references.serving import TargetData
from solverdistill.support.processes import dealt

Progress = Callable[[int, int, float], None]


class Finalist(NamedTuple):
    """A start that did well in a race: its student, and its params; None for the family's own initial ones."""

    student: Student
    params: Params | None


@dataclass(frozen=True)
class Standing:
    """Where a run stands between two fits.

    Args:
        student: The student.
        params: Its best params so far; None for the family's own initial ones.
        rmse: Their mean RMSE on the held-out samples; None before it is known.
        last: Params at the end of the last fit, where these are others than the best.
        reports: What the fits so far did and cost.
        finalists: Other starts of a race that just ended, the best first, for a fit that descends from several.
        rivals: The best starts of other families, where the run chooses among several (`solver=auto`).
    """

    student: Student
    params: Params | None = None
    rmse: float | None = None
    last: Params | None = None
    reports: tuple[FitReport, ...] = field(default=())
    finalists: tuple[Finalist, ...] = ()
    rivals: tuple[Finalist, ...] = ()

    def after(self, report: FitReport, params: Params | None, student: Student | None = None) -> Standing:
        """The standing after a fit; params that are not better than those before are dropped."""
        reports, rmse = (*self.reports, report), report.rmse
        if self.rmse is not None and not rmse < self.rmse:
            return replace(self, reports=reports, finalists=(), rivals=())
        return Standing(student or self.student, params, rmse, None, reports)


@dataclass(frozen=True)
class Descent:
    """What a fit with an optimizer needs beside its settings.

    Args:
        objective: Loss of (family, params, denoiser, batch).
        optimizer: Makes the optimizer from (name, param) pairs.
        schedule: Makes a learning-rate schedule of an optimizer and a number of steps; None for none.
        trainer: Makes, or gives, the Lightning trainer that runs a fit's steps.
        checkpoint: File to go on from.
    """

    objective: Any
    optimizer: Callable[[Any], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None
    trainer: Callable[[Any], Any]
    checkpoint: str | None = None


@dataclass(frozen=True)
class FitPlan:
    """The fits of a run, and what they work on.

    Args:
        student: The student as configured.
        denoiser: The teacher, possibly guided.
        fits: Settings of the fits by their names, in their order.
        shape: Shape of one sample.
        train_samples: Number of training samples.
        seed: Seed of initial params and of samples drawn.
        descent: What a fit with an optimizer needs; None where none of the fits has one.
        held_out_samples: Number of held-out samples.
        rivals: Students of other families at the same cost, where the run chooses among several (`solver=auto`).
    """

    student: Student
    denoiser: Any
    fits: Mapping[str, Fit]
    shape: tuple[int, ...]
    train_samples: int
    seed: int
    descent: Descent | None = None
    held_out_samples: int = 128
    rivals: tuple[Student, ...] = ()

    def check(self) -> None:
        """Refuse fits, an order of them, or a student that cannot work, before anything is computed.

        Raises:
            ValueError: there is no fit, or one of them refuses.
        """
        if not self.fits:
            raise ValueError("fit is empty; name at least one, for example fit=[race,gauss_newton]")
        if self.rivals and not getattr(next(iter(self.fits.values())), "weighs_families", False):
            names = ", ".join(student.family.name for student in (self.student, *self.rivals))
            raise ValueError(
                f"{self.chosen} does not choose among families; let race or gauss_newton come first, or name the "
                f"student, solver=<one of {names}>"
            )
        for student in (self.student, *self.rivals):
            for fit in self.fits.values():
                fit.check(replace(self, student=student, rivals=()))

    @property
    def held_out(self) -> int:
        """Evaluations that the student's error on the held-out samples takes."""
        return dealt(self.held_out_samples) * self.student.family.nfe

    @property
    def chosen(self) -> str:
        """The fits as they are written in a configuration."""
        return f"fit=[{','.join(self.fits)}]"


@dataclass(frozen=True)
class FitContext:
    """Where a fit begins, and what it works on.

    Args:
        plan: The fits of the run.
        standing: Where to begin.
        data: The targets.
        progress: Called with (iteration, iterations, held-out error).
    """

    plan: FitPlan
    standing: Standing
    data: TargetData
    progress: Progress | None = None

    def samples(self, split: str) -> Batch:
        """End points, noise and conditions of a split on the network's device."""
        return on_device(self.data.split(split).batch, self.data.device)

    def trajectories(self, count: int) -> Batch:
        """The first training samples with their whole trajectories, on the network's device."""
        train = self.data.split("train")
        batch = train.take(torch.arange(min(count, len(train))))
        reference = None if batch.reference is None else batch.reference.to(self.data.device)
        return on_device(batch, self.data.device)._replace(reference=reference)


class Fit(Protocol):
    """Settings of a fit, and the doors to it.

    Attributes:
        needs_trajectories: Whether it reads whole reference trajectories, or moves the student's grid away from stored
            states.
        resumes: Whether it goes on from a checkpoint of a killed run.
        differentiates: Whether it takes derivatives of the network.

    One that has `weighs_families`, true, works on all students of a plan, and may come first where there are several.
    """

    needs_trajectories: ClassVar[bool]
    resumes: ClassVar[bool]
    differentiates: ClassVar[bool]

    def check(self, plan: FitPlan) -> None:
        """Refuse a plan that the fit cannot work in; ValueError in one sentence."""
        ...

    def expected(self, plan: FitPlan) -> int:
        """The most forward equivalents that the fit takes in a plan, of all processes together."""
        ...

    def run(self, context: FitContext) -> Standing:
        """Fit; processes of one run share the work and end at the same params.

        A fit that has nothing to do comes back with the very standing that it got.
        """
        ...
