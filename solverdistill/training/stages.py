"""The fits of a run, one after the other: each begins where the one before it ended.

    fit=[race,gauss_newton,gradient]

A race changes the student (its grid, the solver that it starts as), the others its params. What a fit does not improve
on held-out samples it leaves alone, so no stage ends worse than the one before it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from solverdistill.fits.protocol import Fit, FitContext, FitPlan, Progress, Standing
from solverdistill.fits.report import FitReport, Meter
from solverdistill.references.serving import TargetData
from solverdistill.support.memory import lower


class Watcher:
    """Is told how a run goes on; this one shows nothing."""

    def targets(self, report: FitReport) -> None:
        """The targets are there."""

    def fitting(self, name: str, fit: Fit) -> AbstractContextManager[Progress | None]:
        """A fit begins; what this gives is called with its progress."""
        return nullcontext()

    def fitted(self, fit: Fit, report: FitReport) -> None:
        """A fit has ended."""


def fit_all(plan: FitPlan, standing: Standing, data: TargetData, watcher: Watcher | None = None) -> Standing:
    """Make the targets and run every fit; a resumed run goes on with the one that has checkpoints.

    Args:
        plan: The fits, and what they work on.
        standing: Where to begin.
        data: The targets; made here where the cache has them not.
        watcher: Is told how it goes on.
    """
    watcher = watcher or Watcher()
    standing = replace(standing, reports=(make_splits(plan.denoiser, data),))
    watcher.targets(standing.reports[0])
    resumed = plan.descent is not None and plan.descent.checkpoint is not None
    for name, fit in plan.fits.items():
        before = standing
        if resumed and not fit.resumes:
            continue  # done before the run was killed
        resumed = False
        with watcher.fitting(name, fit) as progress, lower(f"fit={name}", *lowerable(name, fit)):
            standing = fit.run(FitContext(plan, standing, data, progress))
        if standing is before:
            continue
        data = data.for_student(standing.student.family)
        watcher.fitted(fit, standing.reports[-1])
    return standing


def make_splits(denoiser: Any, data: TargetData) -> FitReport:
    """Make the training and held-out samples, and say what they cost."""
    meter, before = Meter(data.device), denoiser.images
    data.look_for_room("train", "validation")
    with meter.measure("teacher", 0):
        for split in ("train", "validation"):
            data.split(split)
    meter.add("teacher", denoiser.images - before + data.choice.evaluations)
    return FitReport.of("targets", [], meter, "all made", data.choice.summary())


def lowerable(name: str, fit: Fit) -> list[str]:
    """Settings of a fit that decide how much memory it takes, as advice."""
    held = [key for key in ("batch_size", "directions", "samples") if getattr(fit, key, None) is not None]
    advice = [f"lower fit.{name}.{key} ({getattr(fit, key)})" for key in held]
    return [*advice, *([f"set fit.{name}.checkpointing=true"] if getattr(fit, "checkpointing", None) is False else [])]
