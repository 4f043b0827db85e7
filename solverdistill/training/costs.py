"""What a run will cost: evaluations of the network and minutes of each kind of work, at most, before any is done.

References are counted that the cache has not; fits say themselves what they take with their settings
(`fits.protocol.Fit.expected`), every iteration and every trial of it, so that one that reaches its plateau early takes
a part of that. Minutes are these evaluations times the seconds of a few calls of the network: on one image, then on as
many as take a second, up to a batch of the run, and where a fit differentiates on a third of these with a backward
pass. Nothing is timed in a run of fewer evaluations than `TINY`. The calls are not counted as evaluations of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import call
from solverdistill.fits.protocol import FitPlan
from solverdistill.fits.report import BACKWARD_COST, Meter
from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.references.serving import TargetData
from solverdistill.references.targets import Source, describe
from solverdistill.support.processes import count
from solverdistill.training.configuration import Run

TINY = 3_000  # evaluations of a run in which nothing is timed
LONGEST = 1.0  # seconds that a timed call should take
REFERENCES, COMPARISON = "references", "comparison"


@dataclass(frozen=True)
class Part:
    """A kind of work: its name, evaluations in forward equivalents, and seconds, both at most."""

    name: str
    evaluations: int
    seconds: float = 0.0

    def __str__(self) -> str:
        return amount(self.evaluations, self.seconds)


class Speed(NamedTuple):
    """Seconds per image of an evaluation, and of a forward equivalent where derivatives are taken."""

    forward: float = 0.0
    derivative: float = 0.0


@dataclass(frozen=True)
class Costs:
    """What a run will cost.

    Args:
        parts: Its work, in order.
        timed: Whether the seconds are known.
        adaptive: Whether the reference chooses its steps as it goes, so that its evaluations are the fewest.
    """

    parts: tuple[Part, ...]
    timed: bool
    adaptive: bool = False

    @property
    def total(self) -> Part:
        """All parts."""
        return self._sum(self.parts)

    def since(self, name: str) -> Part:
        """A part and those after it."""
        return self._sum(self.parts[self._place(name) :])

    def until(self, name: str) -> Part:
        """The parts before one; all where there is none of that name."""
        return self._sum(self.parts[: self._place(name)])

    def _place(self, name: str) -> int:
        return next((i for i, part in enumerate(self.parts) if part.name == name), len(self.parts))

    @staticmethod
    def _sum(parts: Sequence[Part]) -> Part:
        return Part("all", sum(part.evaluations for part in parts), sum(part.seconds for part in parts))

    def __str__(self) -> str:
        return str(self.total) if self.timed else f"{self.total.evaluations:,} evaluations"


def amount(evaluations: int, seconds: float) -> str:
    """Evaluations and time in words."""
    return f"{evaluations:,} evaluations, {in_words(seconds)}"


def in_words(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def expect(run: Run, plan: FitPlan, data: TargetData, comparison: int | None = None) -> Costs:
    """What a run will cost, measured on its own network and device.

    Args:
        run: The run.
        plan: Its fits.
        data: Its targets, before they are made.
        comparison: Evaluations of the comparison at its end, beside its references; None for no comparison.
    """
    work = evaluations_of(plan, data, comparison)
    differentiated = {name for name, fit in plan.fits.items() if fit.differentiates}
    if sum(work.values()) < TINY:
        return Costs(tuple(Part(name, number) for name, number in work.items()), False)
    batches = (getattr(fit, "batch_size", data.settings.chunk) for fit in plan.fits.values())
    speed = time_network(run, data.device, min(data.settings.chunk, *batches), bool(differentiated))
    parts: list[Part] = []
    for name, number in work.items():
        each = speed.derivative if name in differentiated else speed.forward
        parts.append(Part(name, number, number * each / count()))
    return Costs(tuple(parts), True, data.settings.reference.solver == "dopri5")


def reference_cost(data: TargetData) -> int:
    """Evaluations of one reference end point."""
    return data.settings.reference.evaluations(data.teacher.path, data.teacher.noise_range, data.rule)


def evaluations_of(plan: FitPlan, data: TargetData, comparison: int | None = None) -> dict[str, int]:
    """Evaluations of references, fits and comparison, at most, of all processes; see `expect`."""
    teacher, settings = data.teacher, data.settings
    each = reference_cost(data)
    known = data.device, data.rule, None if settings.cache is None else describe(data.denoiser)

    def references(*splits: str) -> int:
        sources = {name: Source(settings, name, teacher, data.denoiser, *known) for name in splits}
        return each * sum(source.missing(settings.count(name)) for name, source in sources.items())

    work = {REFERENCES: references("train", "validation") + count() * data.choice.evaluations}
    work |= {name: fit.expected(plan) for name, fit in plan.fits.items()}
    if comparison is not None:
        work[COMPARISON] = references("test") + comparison
    return work


def time_network(run: Run, device: torch.device | str, most: int, differentiate: bool) -> Speed:
    """Time a few calls of the network.

    Args:
        run: Gives the network, and a level that its student asks it at.
        device: Where it runs.
        most: Images that the run gives it at once.
        differentiate: Time a backward pass too.
    """
    family, clock = run.student.family, Meter(device).clock
    program = family.program(family.init(0)).detach()

    def seconds(size: int, backward: bool = False) -> float:
        noise, cond = seeded_noise(range(SPLITS["fresh"], SPLITS["fresh"] + size), run.teacher)
        cond = None if cond is None else pytree.tree_map(lambda leaf: leaf.to(device), cond)
        x = noise.to(device).requires_grad_(backward)
        alpha, sigma = (x.new_full((size,), float(value[0])) for value in (program.alpha, program.sigma))
        with torch.set_grad_enabled(backward):
            began = clock()
            denoised: Any = call(run.denoiser, x, alpha, sigma, cond)
            if backward and denoised.requires_grad:
                began = clock()
                torch.autograd.grad(denoised.sum(), x)
        return (clock() - began) / size

    forward, size = seconds(1), 1  # the first call may load and compile
    if forward < LONGEST or torch.device(device).type != "cpu":
        size = max(1, min(most, int(LONGEST / max(seconds(1), 1e-9))))
        forward = seconds(size)
    if not differentiate:
        return Speed(forward, forward)
    few = max(1, size // 3)
    try:
        backward = min(seconds(few, True) for _ in range(1 if size == 1 else 2))
    except (RuntimeError, NotImplementedError):  # an estimate ends no run: the fit may differentiate otherwise
        backward = forward
    return Speed(forward, max(forward, backward / BACKWARD_COST))
