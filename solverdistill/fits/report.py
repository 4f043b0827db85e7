"""What a fit did and what it cost: network evaluations and seconds of teacher, student forward and student backward."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from solverdistill.support.processes import count

# Forward evaluations that derivatives of one image take, as measured on U-Nets: a backward pass through a frozen
# network, which has no gradients of weights, and one directional derivative.
BACKWARD_COST = 1.0
TANGENT_COST = 1.5
KINDS = ("teacher", "forward", "backward")


class Cost(NamedTuple):
    """What was spent on one kind of work.

    Args:
        evaluations: Images that the network evaluated, in forward equivalents.
        seconds: Wall time.
    """

    evaluations: int = 0
    seconds: float = 0.0


@dataclass
class Meter:
    """Adds up what a fit spends, by kind: "teacher", "forward" and "backward" of the student.

    Args:
        device: Where the network runs; a CUDA device is waited for before the clock is read.
    """

    device: torch.device | str = "cpu"
    spent: dict[str, Cost] = field(default_factory=lambda: dict.fromkeys(KINDS, Cost()), init=False)
    began: float = field(default_factory=time.perf_counter, init=False)

    @contextmanager
    def measure(self, kind: str, evaluations: float) -> Iterator[None]:
        """Count a block of work that takes this many forward equivalents."""
        start = self.clock()
        yield
        self.add(kind, evaluations, self.clock() - start)

    def add(self, kind: str, evaluations: float, seconds: float = 0.0) -> None:
        """Count work that was measured elsewhere; every process does as much as this one."""
        before = self.spent[kind]
        self.spent[kind] = Cost(before.evaluations + round(evaluations * count()), before.seconds + seconds)

    @property
    def evaluations(self) -> int:
        """All evaluations so far, in forward equivalents."""
        return sum(cost.evaluations for cost in self.spent.values())

    @property
    def seconds(self) -> float:
        """Wall time since the meter was made."""
        return time.perf_counter() - self.began

    def point(self, rmse: float) -> Point:
        """Where a fit stands now."""
        return Point(rmse, self.evaluations, self.seconds, tuple(self.spent[kind] for kind in KINDS))

    def clock(self) -> float:
        """Seconds, after waiting for a CUDA device."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Point(NamedTuple):
    """Where a fit stood: error on held-out samples against what was spent until then, in forward equivalents.

    Args:
        rmse: Mean RMSE of the held-out end points.
        evaluations: All evaluations.
        seconds: Wall time.
        spent: Cost by kind of work, in the order of `KINDS`; empty where nothing is known.
    """

    rmse: float
    evaluations: int
    seconds: float
    spent: tuple[Cost, ...] = ()


@dataclass(frozen=True)
class FitReport:
    """What a fit did and what it cost.

    Args:
        fit: Name of the fit.
        history: The start and the states that were kept after it, the best one last; errors are mean RMSE of the
            held-out end points.
        spent: Cost by kind of work.
        seconds: Wall time of the whole fit.
        stopped: Why the fit ended.
        note: How it went, in a clause; empty where there is nothing to say.
    """

    fit: str
    history: tuple[Point, ...]
    spent: dict[str, Cost]
    seconds: float
    stopped: str
    note: str = ""

    @classmethod
    def of(cls, fit: str, history: list[Point], meter: Meter, stopped: str, note: str = "") -> FitReport:
        """The report of a fit that ends now."""
        return cls(fit, tuple(history), dict(meter.spent), meter.seconds, stopped, note)

    @property
    def rmse(self) -> float:
        """Held-out error of the params that the fit returns, the smallest that it found."""
        return self.history[-1].rmse

    @property
    def evaluations(self) -> int:
        """All evaluations, in forward equivalents."""
        return sum(cost.evaluations for cost in self.spent.values())

    def summary(self) -> str:
        """The report in a sentence."""
        spent = ", ".join(f"{kind} {cost.evaluations:,}" for kind, cost in self.spent.items() if cost.evaluations)
        errors = f"held-out RMSE {self.history[0].rmse:.4f} -> {self.rmse:.4f}, " if self.history else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.fit}: {errors}{self.seconds:.0f} s, evaluations: {spent or 'none'}; {self.stopped}{note}"
