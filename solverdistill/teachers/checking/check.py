"""Is a teacher what its settings say? Measurements on a few samples, each with a verdict in one sentence.

What a right denoiser D must do, and a wrong prediction type, time direction, time unit or scaling breaks:

* *denoising*: at every noise level its error is at most that of the noisy sample, x / alpha, whose error is
  sigma / alpha, and at most that of the data's mean, whose error is the data's deviation. No other reading of the same
  network has a smaller one: the posterior mean is the best of all estimates.
* *symmetry*: D is the gradient of a function of x, so u J v = v J u for its Jacobian J and any u, v.
* *round trip*: noise -> sample -> noise along the probability-flow ODE ends where it began.
* *ends*: at the largest level D hardly depends on x; at the smallest it hardly changes it.
* *scale*: the level is free of scale, D(c x; c alpha, c sigma) = D(x; alpha, sigma).
* and what fits need: no dependence between samples, the same answer twice, gradients in x and in the level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from solverdistill.denoisers.base import Teacher
from solverdistill.teachers.checking import properties
from solverdistill.teachers.checking.bench import NOTE, RIGHT, WRONG, Bench, Finding, geometric, rms
from solverdistill.teachers.checking.sample_files import read_samples

OPTIONS = ("data", "labels", "samples", "seed", "device")
WORSE = 1.15  # a trained network and a few samples: allowed above the error of a trivial estimate
BETTER = 0.93  # another reading must be this much better, in the geometric mean over levels, to be preferred
FIRST = "At the largest level the estimate is the data's mean, whatever the noise."
LAST = "At the smallest level the estimate is the sample itself."
UNITS = {
    "x / 2": (0.5, 0.0),
    "2 x": (2.0, 0.0),
    "2 x - 1": (2.0, -1.0),
    "(x + 1) / 2": (0.5, 0.5),
    "x / 127.5 - 1": (1 / 127.5, -1.0),
    "127.5 (x + 1)": (127.5, 127.5),
    "x / 255": (1 / 255, 0.0),
    "255 x": (255.0, 0.0),
}
SLOPE = 0.05  # allowed relative error of the slope (x - denoised) / sigma under strong noise
STRONG = 5.0  # noise over data at the largest level, where sampling begins with noise alone
RATIOS = (0.05, 0.3, 0.8, 2.0, 6.0)


@dataclass(frozen=True)
class Curve:
    """Root-mean-square errors over noise levels, in units of the data's deviation.

    Attributes:
        levels: Noise levels in the unit of the teacher's path.
        ratio: Error of the noisy sample, sigma / alpha over the data's deviation.
        error: Error of the teacher.
    """

    levels: list[float]
    ratio: list[float]
    error: list[float]

    def excess(self) -> tuple[float, int]:
        """The largest error over what is allowed, and its place.

        Allowed is the error of the better estimate without a network, and where noise is strong that of a slope which
        is wrong by a share `SLOPE`: an eps network's estimate there is noise magnified by sigma / alpha.
        """
        allowed = [max(min(ratio, 1.0), SLOPE * ratio) for ratio in self.ratio]
        found = [error / bound for error, bound in zip(self.error, allowed, strict=True)]
        found = [value if math.isfinite(value) else math.inf for value in found]
        worst = max(range(len(found)), key=found.__getitem__)
        return found[worst], worst


def denoising_curve(bench: Bench) -> Curve:
    """Errors of the teacher over its noise range."""
    levels, std = bench.levels(), bench.std
    ratio, errors = [], []
    for s in levels:
        level = bench.level(s)
        x = bench.noised(s)
        with torch.no_grad():
            errors.append(rms(bench.denoised(x, level) - bench.data) / std)
        ratio.append(rms(x / float(level.alpha) - bench.data) / std)
    return Curve(levels, ratio, errors)


def check_denoising(curve: Curve) -> Finding:
    """Compare the teacher's errors with those of two estimates that need no network."""
    excess, worst = curve.excess()
    ratio = curve.ratio[worst]
    name = "the noisy sample itself" if ratio < 1 else "the data's mean" if SLOPE * ratio < 1 else "a 5 % wrong slope"
    what = f"{excess:.2g} times the error of {name} at level {curve.levels[worst]:.4g}"
    if excess <= WORSE:
        return Finding("denoising", RIGHT, what, "At every level it removes noise, as a denoiser should.")
    text = f"At level {curve.levels[worst]:.4g} its estimate is worse than {name}: settings and network do not match."
    return Finding("denoising", WRONG, what, text)


def check_settings(bench: Bench, curve: Curve) -> list[Finding]:
    """Look for a reading of the network, or a unit of given data, that fits better; tell the one that fits best."""
    variants: Mapping[str, Any] = getattr(bench.teacher, "variants", dict)()
    if bench.given:
        own = _error(bench)
        readings = {name: _error(bench, reading) for name, reading in variants.items()}
        units = {name: _error(bench, None, *unit) for name, unit in UNITS.items()}
    else:
        # Generated samples are only as good as the reading that made them, so each is judged on its own.
        own = curve.excess()[0]
        fits = own <= WORSE
        readings = {} if fits else {n: denoising_curve(bench.of(t)).excess()[0] for n, t in variants.items()}
        units = {}
    reading, unit = (min(found, key=found.__getitem__, default=None) for found in (readings, units))
    errors = [math.inf if name is None else found[name] for name, found in ((reading, readings), (unit, units))]
    # A teacher that runs away is beaten by anything finite.
    factors = [error / own if math.isfinite(own) else 0.0 if math.isfinite(error) else math.inf for error in errors]
    blame = factors.index(min(factors)) if min(factors) < BETTER else None
    return [_of_reading(variants, reading, factors[0], blame), _of_units(bench, unit, factors[1], blame)]


def _of_reading(variants: Mapping[str, Any], best: str | None, factor: float, blame: int | None) -> Finding:
    name = "prediction, time"
    if not variants:
        return Finding(
            name, NOTE, "not tried", "This kind of teacher brings its settings along; only errors are checked."
        )
    measured = "no need" if best is None else f"best other: {best}, {factor:.3g} times the error"
    if blame == 0:
        return Finding(name, WRONG, measured, f"The network fits better when read with {best}; set it and check again.")
    if blame == 1:
        return Finding(name, NOTE, measured, "Bring the data to the network's unit first and check again.")
    return Finding(name, RIGHT, measured, "No other prediction type, time direction or time unit fits better.")


def _of_units(bench: Bench, best: str | None, factor: float, blame: int | None) -> Finding:
    if best is None:
        low, high, mean = (float(value) for value in (bench.data.min(), bench.data.max(), bench.data.mean()))
        measured = f"samples span {low:.3g} .. {high:.3g}, mean {mean:.3g}, deviation {bench.std:.3g}"
        return Finding(
            "scaling", NOTE, measured, "Compare with the data that the network was trained on, or give some."
        )
    measured = f"best other: {best}, {factor:.3g} times the error"
    if blame == 1:
        text = f"The network knows the data better as {best}, x being what was given: bring both to one unit."
        return Finding("scaling", WRONG, measured, text)
    if blame == 0:
        return Finding("scaling", NOTE, measured, "Mend prediction and time first and check again.")
    return Finding("scaling", RIGHT, measured, "The given data are in the unit that the network was trained on.")


def _error(bench: Bench, teacher: Any = None, factor: float = 1.0, shift: float = 0.0) -> float:
    """Geometric mean, over levels of equal noise against deviation, of the error of data in another unit."""
    data, path = factor * bench.data + shift, bench.teacher.path
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(1)).to(data)
    errors = []
    for ratio in RATIOS:
        s = float(path.from_half_log_snr(-math.log(ratio * factor * bench.std)))
        with torch.no_grad():
            found = bench.denoised(bench.noised(s, data, noise), bench.level(s), teacher)
        errors.append(rms(found - data) / (factor * bench.std))
    return geometric(errors)


def check_ends(bench: Bench) -> list[Finding]:
    """What the estimate depends on at the ends of the noise range."""
    start, end = bench.teacher.noise_range
    with torch.no_grad():
        one, other = (bench.denoised(bench.noised(start), bench.level(start)) for _ in range(2))
        level = bench.level(end)
        x = bench.noised(end)
        last = bench.denoised(x, level) - x / float(level.alpha)
    spread, change = rms(one - other) / math.sqrt(2) / bench.std, rms(last) / bench.std
    ratio = float(bench.level(start).sigma / bench.level(start).alpha) / bench.std
    limit = max(0.5, SLOPE * ratio) if math.isfinite(ratio) else 0.5
    findings = []
    for name, value, allowed, good, bad in (
        ("first level", spread, limit, FIRST, "At the largest level the estimate depends on the noise"),
        ("last level", change, 0.1, LAST, "At the smallest level the estimate changes the sample"),
    ):
        measured, right = f"{value:.2g} of the data's deviation, {allowed:.2g} allowed", value < allowed
        if right and name == "first level" and ratio < STRONG:
            right, bad = False, f"At the largest level there is only {ratio:.2g} times as much noise as data"
        mend = "begins too low" if name == "first level" else "ends too high"
        text = good if right else f"{bad}: noise_range {mend}, or the time is wrong."
        findings.append(Finding(name, RIGHT if right else WRONG, measured, text))
    return findings


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
    findings = [check_denoising(curve), *check_settings(bench, curve)]
    if not math.isfinite(bench.std):
        text = "The ODE runs away from every noise: settings and network do not match."
        return [Finding("samples", WRONG, "not finite", text), *findings], curve
    return [*findings, *check_ends(bench), *properties.check_properties(bench)], curve
