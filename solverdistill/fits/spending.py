"""What gradient descent spends: images and seconds of its forward and backward passes, measured around its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from solverdistill.denoisers.wrappers import Counted
from solverdistill.fits.report import BACKWARD_COST, Cost, FitReport, Meter, Point


class Spending:
    """Splits the blocks between `begin` and `end` into forward work and the backward passes within.

    Args:
        counted: Counts the images that the network evaluates. Those evaluated within a backward pass, where
            checkpointing recomputes them, count as backward.
    """

    def __init__(self, counted: Counted) -> None:
        self.counted, self.meter, self.history = counted, Meter(), list[Point]()
        self._began, self._images, self._through = 0.0, 0, True
        self._back_seconds, self._back_images, self._recomputed = 0.0, 0, 0

    def begin(self, device: torch.device | str = "cpu") -> None:
        """Start a training step or a validation."""
        self.meter.device = device
        self._began, self._images = self.meter.clock(), self.counted.images
        self._back_seconds, self._back_images, self._recomputed = 0.0, 0, 0

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Run a backward pass through everything evaluated in this block so far."""
        start, before = self.meter.clock(), self.counted.images
        yield
        recomputed = self.counted.images - before
        if self._through:
            self._back_images += before - self._images - self._recomputed
        self._recomputed += recomputed
        self._back_seconds += self.meter.clock() - start

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Backward passes in here, as those of a discriminator, do not go through the teacher."""
        self._through = False
        yield
        self._through = True

    def end(self) -> None:
        """End the block."""
        forward = self.counted.images - self._images - self._recomputed
        backward = BACKWARD_COST * self._back_images + self._recomputed
        self.meter.add("forward", forward, self.meter.clock() - self._began - self._back_seconds)
        self.meter.add("backward", backward, self._back_seconds)

    def point(self, rmse: float) -> None:
        """Note the best held-out error so far."""
        self.history.append(self.meter.point(rmse))

    def report(self, stopped: str, note: str = "") -> FitReport:
        """What was done and spent until now."""
        return FitReport.of("gradient", self.history, self.meter, stopped, note)

    def state_dict(self) -> dict[str, Any]:
        """Costs and history, in plain containers."""
        spent = {kind: list(cost) for kind, cost in self.meter.spent.items()}
        history = [[*point[:3], [list(cost) for cost in point.spent]] for point in self.history]
        return {"spent": spent, "history": history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a killed run had spent."""
        self.meter.spent = {kind: Cost(*cost) for kind, cost in state["spent"].items()}
        self.history = []
        for rmse, evaluations, seconds, *spent in state["history"]:  # the last is not in files of older versions
            kinds = tuple(Cost(*cost) for cost in (spent[0] if spent else ()))
            self.history.append(Point(rmse, evaluations, seconds, kinds))
