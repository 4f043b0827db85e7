"""The samples, noise and levels that a teacher is checked on, and its probability-flow ODE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import Teacher, call
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import Level

RIGHT, WRONG, NOTE = "right", "wrong", "note"
CERTAIN, LIKELY, UNSURE = "certain", "likely", "unsure"
SURE = ((4.0, CERTAIN), (2.0, LIKELY))  # standard errors between a mean over samples and what is allowed


@dataclass(frozen=True)
class Finding:
    """One check.

    Args:
        check: Its name.
        verdict: `RIGHT`, `WRONG` or `NOTE`.
        measured: What was measured.
        sentence: What it means, and the way out.
        sure: How sure the verdict is: `CERTAIN`, `LIKELY` or `UNSURE`.
    """

    check: str
    verdict: str
    measured: str
    sentence: str
    sure: str = CERTAIN


class Bench:
    """A teacher with the samples that it is checked on.

    Args:
        teacher: The teacher.
        data: Clean samples; None generates them with the teacher itself. Shape: (samples, *teacher.shape).
        cond: Their conditions; None draws them for generated samples and leaves given ones without.
        samples: How many to generate.
        seed: Of all noise.
        device: Where the network runs.
        steps: Of Heun's method for generated samples and the round trip.
    """

    def __init__(
        self,
        teacher: Teacher,
        data: Tensor | None = None,
        cond: Any = None,
        samples: int = 16,
        seed: int = 0,
        device: torch.device | str = "cpu",
        steps: int = 64,
    ) -> None:
        self.teacher, self.device = teacher.to(device), torch.device(device)
        self.seed, self.given, self.steps = seed, data is not None, steps
        self.generator = torch.Generator().manual_seed(seed)
        if data is None and cond is None and teacher.num_classes:
            labels = [teacher.draw_cond(self.generator) for _ in range(samples)]
            cond = torch.stack(labels).to(self.device)
        self.cond = cond.to(self.device) if isinstance(cond, Tensor) else cond
        if data is not None and tuple(data.shape[1:]) != teacher.shape:
            raise ValueError(f"data has samples of shape {tuple(data.shape[1:])}, the teacher's are {teacher.shape}")
        start = self.noise(samples if data is None else len(data))
        with torch.no_grad():
            self.data = self.integrate(start)[0] if data is None else data.to(self.device, torch.float32)
        self.std = float(self.data.var(0).mean().sqrt())

    def of(self, teacher: Teacher) -> Bench:
        """The same kind of bench for another teacher, on the given data or else on samples of its own."""
        data = self.data if self.given else None
        return Bench(teacher, data, self.cond, len(self.data), self.seed, self.device, steps=20)

    def noise(self, count: int | None = None) -> Tensor:
        """Unit-normal noise. Shape: (count, *shape), as many as there are samples by default."""
        shape = (len(self.data) if count is None else count, *self.teacher.shape)
        return torch.randn(shape, generator=self.generator).to(self.device)

    def level(self, s: float) -> Level:
        """The teacher's own level at s, on the host."""
        return self.teacher.path.level(s)

    def levels(self, count: int = 9) -> list[float]:
        """Noise levels of the range that are even in log sigma / alpha, leaving out pure noise and clean data."""
        path = self.teacher.path
        start, end = (float(path.half_log_snr(s)) for s in self.teacher.noise_range)
        start, end = max(start, -math.log(200.0)), min(end, math.log(1000.0))
        return path.from_half_log_snr(torch.linspace(start, end, count, dtype=torch.float64)).tolist()

    def noised(self, s: float, data: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Samples at noise level s."""
        alpha, sigma = (float(value) for value in self.level(s))
        clean = self.data if data is None else data
        return alpha * clean + sigma * (self.noise() if noise is None else noise)

    def denoised(self, x: Tensor, level: Level, teacher: Any = None, cond: Any = None) -> Tensor:
        """The denoised estimate of states at one level."""
        alpha, sigma = (x.new_full((len(x),), float(value)) for value in level)
        return call(teacher or self.teacher, x, alpha, sigma, self.cond if cond is None else cond)

    def first(self) -> Any:
        """The condition of the first sample alone."""
        batched = lambda leaf: isinstance(leaf, Tensor) and leaf.ndim > 0  # noqa: E731
        return pytree.tree_map(lambda leaf: leaf[:1] if batched(leaf) else leaf, self.cond)

    def integrate(self, noise: Tensor, back: bool = False) -> tuple[Tensor, Tensor | None]:
        """Heun's method along the ODE: the sample of `noise`, and the noise that it goes back to.

        Written in the path's straight coordinates, dy/du = (y - denoised) / u; an end without noise is left out.
        """
        path = self.teacher.path
        start, end = self.teacher.noise_range
        clock = path.clock(Grid("polynomial", self.steps, start, end).values(path))
        clock = clock[clock > 0].tolist()

        def slope(y: Tensor, u: float) -> Tensor:
            return (y - self.denoised(y, path.straight(u))) / u

        def heun(y: Tensor, clock: list[float]) -> Tensor:
            for u, after in zip(clock, clock[1:], strict=False):
                first = slope(y, u)
                y = y + (after - u) / 2 * (first + slope(y + (after - u) * first, after))
            return y

        scale = clock[0]
        y = heun(scale * noise, clock)
        sample = self.denoised(y, path.straight(clock[-1]))
        return sample, heun(y, clock[::-1]) / scale if back else None


def judge(excess: Tensor) -> tuple[bool, str]:
    """Whether samples exceed what is allowed in the mean, and how sure that is.

    Args:
        excess: What is measured less what is allowed, of every sample. Shape: (samples,).
    """
    values = excess.double()
    mean = float(values.mean())
    if not math.isfinite(mean):
        return True, CERTAIN
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    errors = abs(mean) / max(error, 1e-300)
    return mean > 0, next((sure for enough, sure in SURE if errors >= enough), UNSURE)


def squares(difference: Tensor) -> Tensor:
    """Mean square of every sample. Shape: (samples,)."""
    return difference.double().square().flatten(1).mean(1)


def rms(difference: Tensor) -> float:
    """Root mean square over everything."""
    return float(difference.double().square().mean().sqrt())
