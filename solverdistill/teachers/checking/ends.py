"""What a teacher's estimate depends on at the ends of its noise range, and where the range could end instead."""

from __future__ import annotations

import math

import torch

from solverdistill.noise.paths import EDM
from solverdistill.teachers.checking.bench import (
    CERTAIN,
    LIKELY,
    NOTE,
    RIGHT,
    UNSURE,
    WRONG,
    Bench,
    Finding,
    judge,
    rms,
    squares,
)
from solverdistill.teachers.checking.denoising import SLOPE

FIRST = "At the largest level the estimate is the data's mean, whatever the noise."
LAST = "At the smallest level the estimate is the sample itself."
STRONG = 5.0  # noise over data at the largest level, where sampling begins with noise alone
SPREAD = 0.5  # of the estimates at the largest level, over the data's deviation
CHANGE = 0.1  # of a sample at the smallest level, over the data's deviation
HIGHER = (10.0, 40.0, 160.0)  # noise over data where the range is tried to begin
LOWER = tuple(0.5**n for n in range(1, 11))  # factors on the smallest level where it is tried to end


def check_ends(bench: Bench, advise: bool = True) -> list[Finding]:
    """Both ends of the noise range.

    Args:
        bench: The teacher and its samples.
        advise: Look for a better end where one is wrong.
    """
    return [_first(bench, advise), _last(bench, advise)]


def _first(bench: Bench, advise: bool) -> Finding:
    start = bench.teacher.noise_range[0]
    exceeded, sure, measured = _spread(bench, start)
    ratio = _ratio(bench, start)
    if exceeded and sure == UNSURE:
        text = "At the largest level the estimate may depend on the noise; more samples would tell."
        return Finding("first level", NOTE, measured, text, sure)
    if not exceeded and ratio >= STRONG:
        return Finding("first level", RIGHT, measured, FIRST, sure)
    bad = "the estimate depends on the noise" if exceeded else f"there is only {ratio:.2g} times as much noise as data"
    found = next((s for s in _higher(bench, start) if not _spread(bench, s)[0]), None) if advise else None
    text = f"At the largest level {bad}: " + (
        f"noise_range begins too low (beginning at {found:.3g} mends it)."
        if found is not None
        else "the time or the schedule is wrong, or the network was not trained there; no higher beginning mends it."
    )
    return Finding("first level", WRONG, measured, text, sure if exceeded else CERTAIN)


def _last(bench: Bench, advise: bool) -> Finding:
    end = bench.teacher.noise_range[1]
    exceeded, sure, measured = _change(bench, end)
    if not exceeded:
        return Finding("last level", RIGHT, measured, LAST, sure)
    if sure == UNSURE:
        text = "At the smallest level the estimate may change the sample; more samples would tell."
        return Finding("last level", NOTE, measured, text, sure)
    lower = [end * factor for factor in LOWER] if advise else []
    found = next((s for s in lower if not _change(bench, s)[0]), None)
    text = "At the smallest level the estimate changes the sample: " + (
        f"noise_range ends too high (ending at {found:.3g} mends it)."
        if found is not None
        else "the time or the schedule is wrong, or the network was not trained there; no lower end mends it."
    )
    return Finding("last level", WRONG, measured, text, sure if found is not None else min(sure, LIKELY, key=_order))


def _order(sure: str) -> int:
    return (UNSURE, LIKELY, CERTAIN).index(sure)


def _ratio(bench: Bench, s: float) -> float:
    """Noise over data at a level."""
    level = bench.level(s)
    return float(level.sigma / level.alpha) / bench.std


def _higher(bench: Bench, start: float) -> list[float]:
    """Higher levels to begin at, those of a schedule that ends not past its end."""
    path = bench.teacher.path
    found = [float(path.from_half_log_snr(-math.log(ratio * bench.std))) for ratio in HIGHER]
    ends = isinstance(path, EDM)
    return [s for s in found if s > start and (ends or s <= 1)]


def _spread(bench: Bench, s: float) -> tuple[bool, str, str]:
    """Whether estimates of the same samples under other noise differ too much."""
    with torch.no_grad():
        one, other = (bench.denoised(bench.noised(s), bench.level(s)) for _ in range(2))
    ratio = _ratio(bench, s)
    limit = max(SPREAD, SLOPE * ratio) if math.isfinite(ratio) else SPREAD
    measured = f"{rms(one - other) / math.sqrt(2) / bench.std:.2g} of the data's deviation, {limit:.2g} allowed"
    return *judge(squares(one - other) / 2 / bench.std**2 - limit**2), measured


def _change(bench: Bench, s: float) -> tuple[bool, str, str]:
    """Whether an estimate is too far from its sample."""
    level, x = bench.level(s), bench.noised(s)
    with torch.no_grad():
        change = bench.denoised(x, level) - x / float(level.alpha)
    measured = f"{rms(change) / bench.std:.2g} of the data's deviation, {CHANGE:.2g} allowed"
    return *judge(squares(change) / bench.std**2 - CHANGE**2), measured
