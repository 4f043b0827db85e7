"""Whether a teacher removes noise at every level: its errors against those of estimates that need no network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solverdistill.teachers.checking.bench import NOTE, RIGHT, UNSURE, WRONG, Bench, Finding, judge, rms, squares

WORSE = 1.15  # a trained network and a few samples: allowed above the error of a trivial estimate
SLOPE = 0.05  # allowed relative error of the slope (x - denoised) / sigma under strong noise
UNSEEN = 0.02  # error over the data's deviation that no sample shows: all that little noise can ask for


@dataclass(frozen=True)
class Curve:
    """Root-mean-square errors over noise levels, in units of the data's deviation.

    Attributes:
        levels: Noise levels in the unit of the teacher's path.
        ratio: Error of the noisy sample, sigma / alpha over the data's deviation.
        error: Error of the teacher.
        squares: Its mean square of every sample. Shape: (levels, samples).
    """

    levels: list[float]
    ratio: list[float]
    error: list[float]
    squares: Tensor

    def allowed(self) -> list[float]:
        """The error of the better estimate without a network.

        Where noise is strong it is that of a slope which is wrong by a share `SLOPE`: an eps network's estimate there
        is noise magnified by sigma / alpha. Where there is hardly any noise it is `UNSEEN`: a trained network's error
        may exceed the noise there by far, which no sample shows.
        """
        return [max(min(ratio, 1.0), SLOPE * ratio, UNSEEN) for ratio in self.ratio]

    def excess(self) -> tuple[float, int]:
        """The largest error over what is allowed, and its place."""
        found = [error / bound for error, bound in zip(self.error, self.allowed(), strict=True)]
        found = [value if math.isfinite(value) else math.inf for value in found]
        worst = max(range(len(found)), key=found.__getitem__)
        return found[worst], worst


def denoising_curve(bench: Bench) -> Curve:
    """Errors of the teacher over its noise range."""
    levels, std = bench.levels(), bench.std
    ratio, errors, parts = [], [], []
    for s in levels:
        level = bench.level(s)
        x = bench.noised(s)
        with torch.no_grad():
            found = bench.denoised(x, level) - bench.data
        errors.append(rms(found) / std)
        parts.append(squares(found).cpu() / std**2)
        ratio.append(rms(x / float(level.alpha) - bench.data) / std)
    return Curve(levels, ratio, errors, torch.stack(parts))


def check_denoising(curve: Curve) -> Finding:
    """Compare the teacher's errors with those of estimates that need no network."""
    excess, worst = curve.excess()
    ratio, level, allowed = curve.ratio[worst], curve.levels[worst], curve.allowed()[worst]
    name = "an error of 2 %, which no sample shows"
    if allowed > UNSEEN:
        names = "the error of the noisy sample itself", "that of the data's mean", "that of a 5 % wrong slope"
        name = names[0 if ratio < 1 else 1 if SLOPE * ratio < 1 else 2]
    what = f"{excess:.2g} times {name} at level {level:.4g}"
    exceeded, sure = judge(curve.squares[worst] - (WORSE * allowed) ** 2)
    if not exceeded:
        return Finding("denoising", RIGHT, what, "At every level it removes noise, as a denoiser should.", sure)
    if sure == UNSURE:
        text = f"At level {level:.4g} its estimate may be too bad; more samples would tell (+check.samples=64)."
        return Finding("denoising", NOTE, what, text, sure)
    text = f"At level {level:.4g} its error exceeds {name}: settings and network do not match."
    return Finding("denoising", WRONG, what, text, sure)
