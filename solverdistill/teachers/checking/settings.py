"""Whether a network fits better when read in another way, or given data in another unit; what is advised was tried.

The estimate of a right reading is the best there is, at every level. So another reading is believed only where it is
clearly better in the mean, nowhere worse, and removes noise as a denoiser should when it is set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.teachers.checking.bench import (
    LIKELY,
    NOTE,
    RIGHT,
    UNSURE,
    WRONG,
    Bench,
    Finding,
    judge,
    squares,
)
from solverdistill.teachers.checking.denoising import Curve, check_denoising, denoising_curve
from solverdistill.teachers.checking.ends import check_ends

READING, SCALING = "prediction, time, schedule", "scaling"
BETTER = 0.93  # another reading must be this much better, in the geometric mean over levels, to be preferred
NOWHERE = 1.1  # and at no level this much worse
ALIKE = 1.06  # of readings this close the one that changes less is named
SAME = 0.6  # noise over data where both count
SCALES = 0.1  # of an estimate's variance that no multiple of the state explains: trained networks leave 0.17 and more
TINY = 1e-24
OFF = 0.03  # miscalibration of generated samples that is looked into, and that another reading must take away
# Noise over data; with less, errors are not seen and trained networks may be off either way.
RATIOS = (0.2, 0.6, 1.8, 5.0)
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


@dataclass(frozen=True)
class Better:
    """What fits better.

    Args:
        name: What to set, or what the data are to the network.
        factor: Its error over that of the settings as they are.
        sure: How sure that is.
    """

    name: str
    factor: float
    sure: str


def check_settings(bench: Bench, curve: Curve) -> list[Finding]:
    """Three findings: denoising, other readings of the network, and other units of given data."""
    denoising = check_denoising(curve)
    variants: Mapping[str, Teacher] = getattr(bench.teacher, "variants", dict)()
    off = 0.0 if bench.given or not variants else miscalibration(bench)
    reading, unit = _best_reading(bench, variants, denoising, off), None
    if bench.given:
        own = _errors(bench)
        unit = _best([_gain(name, own, _errors(bench, None, *how)) for name, how in UNITS.items()])
        unit = unit if unit and _suits(bench, *UNITS[unit.name]) else None
    if reading and unit:
        reading, unit = (reading, None) if reading.factor <= unit.factor else (None, unit)
    if denoising.verdict == WRONG and reading is None and unit is None:
        also = "no other reading that was tried mends it; was it trained?" if variants else "was it trained?"
        denoising = replace(denoising, sentence=f"{denoising.sentence[:-1]}; {also}", sure=LIKELY)
    return [denoising, _of_reading(bench, variants, off, reading, unit), _of_units(bench, reading, unit)]


def _best_reading(bench: Bench, variants: Mapping[str, Teacher], denoising: Finding, off: float) -> Better | None:
    """The best of the readings that are better and were tried; None where there is none."""
    if bench.given:
        own = _errors(bench)
        found = [_gain(name, own, _errors(bench, teacher)) for name, teacher in variants.items()]
    elif denoising.verdict != WRONG and off <= OFF:
        return None
    else:
        # Generated samples are only as good as the reading that made them, so each is judged on its own.
        others = {name: miscalibration(bench.of(teacher)) for name, teacher in variants.items()}
        found = [Better(name, math.exp(other - off), LIKELY) for name, other in others.items() if other < off - OFF]
    better = [one for one in found if one is not None]
    while (best := _best(better)) is not None and not _mends(bench, variants[best.name]):
        better.remove(best)
    return best


def _mends(bench: Bench, teacher: Teacher) -> bool:
    """Try a reading: whether it removes noise and, where it makes its own samples, makes them of noise.

    A network that is not trained, which hardly says anything, does so under some readings: they scale the state as
    suits normal data. They are no advice.
    """
    tried = bench.of(teacher)
    if not math.isfinite(tried.std) or check_denoising(denoising_curve(tried)).verdict != RIGHT or _scales(tried):
        return False
    return bench.given or all(end.verdict == RIGHT for end in check_ends(tried, advise=False))


def _suits(bench: Bench, factor: float, shift: float) -> bool:
    """Try a unit: whether the teacher removes noise from the data in it."""
    tried = Bench(bench.teacher, factor * bench.data + shift, bench.cond, seed=bench.seed, device=bench.device)
    return check_denoising(denoising_curve(tried)).verdict == RIGHT


def _scales(bench: Bench) -> bool:
    """Whether the estimate is hardly more than a multiple of the state where noise and data are as strong."""
    s = float(bench.teacher.path.from_half_log_snr(-math.log(SAME * bench.std)))
    x = bench.noised(s)
    with torch.no_grad():
        denoised = bench.denoised(x, bench.level(s))
    estimate, state = ((value.double() - value.double().mean(0)).flatten() for value in (denoised, x))
    left = estimate - (estimate @ state) / (state @ state) * state
    return float(left.square().sum()) < SCALES * float(estimate.square().sum())


def _best(found: Sequence[Better | None]) -> Better | None:
    """The best of those that are better; of those alike, the one that changes least."""
    better = [one for one in found if one is not None]
    lowest = min((one.factor for one in better), default=0.0)
    alike = [one for one in better if one.factor <= ALIKE * lowest]
    return min(alike, key=lambda one: (len(one.name.split()), one.factor), default=None)


def _gain(name: str, own: Tensor, other: Tensor) -> Better | None:
    """What another reading gains over the settings as they are; None unless it is better.

    Args:
        name: The other's name.
        own: Mean squares of the error. Shape: (levels, samples).
        other: Those of the other reading, on the same samples with the same noise.
    """
    if not bool(other.isfinite().all()):
        return None
    if not bool(own.isfinite().all()):
        return Better(name, 0.0, LIKELY)  # a teacher that runs away is beaten by anything finite
    gains = 0.5 * (torch.log(other.clamp(min=TINY)) - torch.log(own.clamp(min=TINY))).mean(0)
    worse, sure = judge(gains - math.log(BETTER))
    if worse or sure == UNSURE or bool((other.mean(1) > NOWHERE**2 * own.mean(1)).any()):
        return None
    return Better(name, math.exp(float(gains.mean())), sure)


def _errors(bench: Bench, teacher: Teacher | None = None, factor: float = 1.0, shift: float = 0.0) -> Tensor:
    """Mean square errors of data in another unit, over its deviation's square, at levels of equal noise against data.

    Shape: (levels, samples).
    """
    data, path = factor * bench.data + shift, bench.teacher.path
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(1)).to(data)
    errors = []
    for ratio in RATIOS:
        s = float(path.from_half_log_snr(-math.log(ratio * factor * bench.std)))
        with torch.no_grad():
            found = bench.denoised(bench.noised(s, data, noise), bench.level(s), teacher)
        errors.append(squares(found - data).cpu() / (factor * bench.std) ** 2)
    return torch.stack(errors)


def miscalibration(bench: Bench) -> float:
    """How much of the error a linear correction of the estimate would take away: mean of the logarithms over levels.

    A posterior mean D leaves a residual x_0 - D that nothing made of x and D explains, on the samples that it generates
    itself. Trained networks reach 0.03, wrong readings 0.08 and more; infinite where the teacher runs away.
    """
    path, found = bench.teacher.path, []
    for ratio in RATIOS:
        s = float(path.from_half_log_snr(-math.log(ratio * bench.std))) if math.isfinite(bench.std) else math.nan
        level, x = bench.level(s), bench.noised(s)
        with torch.no_grad():
            denoised = bench.denoised(x, level)
        known = [(value.double() - bench.data.mean(0)).flatten() for value in (denoised, x / float(level.alpha))]
        residual, terms = (bench.data - denoised).double().flatten(), torch.stack(known, 1)
        if not bool(terms.isfinite().all()):
            return math.inf
        left = residual - terms @ torch.linalg.lstsq(terms, residual[:, None]).solution[:, 0]
        found.append(0.5 * math.log(max(float(residual.square().mean() / left.square().mean().clamp(min=TINY)), 1.0)))
    return sum(found) / len(found)


def _of_reading(
    bench: Bench, variants: Mapping[str, Teacher], off: float, reading: Better | None, unit: Better | None
) -> Finding:
    if not variants:
        text = "This kind of teacher brings its settings along; only errors are checked."
        return Finding(READING, NOTE, "not tried", text)
    if reading:
        share = f"{reading.factor:.3g} times the error" if reading.factor else "finite, where the settings run away"
        measured = f"{reading.name}: {share}"
        text = f"The network fits better when read with {reading.name}; it was tried and removes noise: set it."
        return Finding(READING, WRONG, measured, text, reading.sure)
    measured = f"{len(variants)} others tried, none better"
    if unit:
        return Finding(READING, NOTE, measured, "Bring the data to the network's unit first and check again.")
    if off > OFF:
        text = "The estimates do not fit the samples, but no other reading that was tried does; real data would tell."
        return Finding(READING, NOTE, measured, text, UNSURE)
    text = "No other prediction type, time direction, time unit or noise schedule that was tried fits better."
    if bench.given:
        return Finding(READING, RIGHT, measured, text)
    text = "The estimates fit the samples that they generate, so no other reading was tried."
    return Finding(READING, RIGHT, f"a linear correction gains {100 * math.expm1(off):.1f} %", text, LIKELY)


def _of_units(bench: Bench, reading: Better | None, unit: Better | None) -> Finding:
    if not bench.given:
        low, high, mean = (float(value) for value in (bench.data.min(), bench.data.max(), bench.data.mean()))
        measured = f"samples span {low:.3g} .. {high:.3g}, mean {mean:.3g}, deviation {bench.std:.3g}"
        return Finding(SCALING, NOTE, measured, "Compare with the data that the network was trained on, or give some.")
    if unit:
        measured = f"{unit.name}: {unit.factor:.3g} times the error"
        text = f"The network knows the data better as {unit.name}, x being what was given: bring both to one unit."
        return Finding(SCALING, WRONG, measured, text, unit.sure)
    measured = f"{len(UNITS)} others tried, none better"
    if reading:
        return Finding(SCALING, NOTE, measured, "Mend prediction, time and schedule first and check again.")
    return Finding(SCALING, RIGHT, measured, "The given data are in the unit that the network was trained on.")
