"""Is a teacher what its settings say? Measurements on a few samples, each with a verdict in one sentence.

What a right denoiser D must do, and a wrong prediction type, time direction, time unit or scaling breaks:

* *denoising*: at every noise level its error is at most that of the noisy sample, x / alpha, whose error is
  sigma / alpha, and at most that of the data's mean, whose error is the data's deviation. No other reading of the same
  network has a smaller one: the posterior mean is the best of all estimates. Errors that no sample shows are let pass.
* *symmetry*: D is the gradient of a function of x, so u J v = v J u for its Jacobian J and any u, v.
* *round trip*: noise -> sample -> noise along the probability-flow ODE ends where it began.
* *ends*: at the largest level D hardly depends on x; at the smallest it hardly changes it.
* *scale*: the level is free of scale, D(c x; c alpha, c sigma) = D(x; alpha, sigma).
* and what fits need: no dependence between samples, the same answer twice, gradients in x and in the level.

A verdict says how sure it is: how many standard errors the mean over the samples lies from what is allowed. What a
finding advises was tried before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from solverdistill.denoisers.base import Teacher
from solverdistill.teachers.checking import properties
from solverdistill.teachers.checking.bench import WRONG, Bench, Finding
from solverdistill.teachers.checking.denoising import Curve, denoising_curve
from solverdistill.teachers.checking.ends import check_ends
from solverdistill.teachers.checking.sample_files import read_samples
from solverdistill.teachers.checking.settings import check_settings

OPTIONS = ("data", "labels", "samples", "seed", "device")


def make_bench(teacher: Teacher, options: Mapping[str, Any]) -> Bench:
    """The bench that a configuration asks for.

    Args:
        teacher: The teacher.
        options: data and labels, files that `read_samples` reads; samples (16), how many; seed; device.
    Raises:
        ValueError: there is another option.
    """
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"check.{name} is unknown; known: {', '.join(OPTIONS)}")
    count = options.get("samples", 16)
    data, labels = options.get("data"), options.get("labels")
    return Bench(
        teacher,
        None if data is None else read_samples(data, teacher.shape, count),
        None if labels is None else read_samples(labels, (), count),
        samples=count,
        seed=options.get("seed", 0),
        device=options.get("device", "cpu"),
    )


def check_teacher(bench: Bench) -> tuple[list[Finding], Curve]:
    """All checks, those of the settings first; where sampling runs away only these."""
    curve = denoising_curve(bench)
    findings = check_settings(bench, curve)
    if not math.isfinite(bench.std):
        text = "The ODE runs away from every noise: settings and network do not match."
        return [Finding("samples", WRONG, "not finite", text), *findings], curve
    return [*findings, *check_ends(bench), *properties.check_properties(bench)], curve
