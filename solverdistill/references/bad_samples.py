"""Samples that are not finite: found as soon as they are made, named, and stopped at or left out.

One of them would make a mean over its split, and so every fit, not finite either.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from solverdistill.noise.paths import Path
from solverdistill.references.seeding import SPLITS

STOP, SKIP = "stop", "skip"
MOST = 0.01  # of the samples of a split that may be left out
log = logging.getLogger(__name__)


class Found(NamedTuple):
    """Which sample it is, and from which noise level on it is not finite."""

    name: str
    where: str


class BadSamples:
    """Looks for samples of a split that are not finite.

    Args:
        policy: "stop" or "skip"; None stops, where none can be left out.
        split: Name of the split.
        samples: Samples of the split; those of the last chunk beyond it are not looked at.
        chunk: Samples of a chunk.
        path: Path of the reference.
        clock: Clock of its fine grid. Shape: (points,).
    """

    def __init__(self, policy: str | None, split: str, samples: int, chunk: int, path: Path, clock: Tensor) -> None:
        self.policy, self.split, self.samples, self.chunk = policy, split, samples, chunk
        self.path, self.clock = path, clock
        self.found: dict[int, Found] = {}

    def keep(self, chunk: int, rows: Mapping[str, Tensor]) -> Tensor:
        """Positions, within a chunk, of its samples that belong to the split and are finite.

        Args:
            chunk: Number of the chunk.
            rows: States and slopes, shape (chunk, points, ...), and leaves of the condition.
        Raises:
            ValueError: one is not finite, and none, or no more, may be left out.
        """
        first, points = chunk * self.chunk, first_bad(rows["states"], rows["slopes"])
        good = (points == rows["states"].shape[1])[: max(0, self.samples - first)]
        for row in (~good).nonzero().flatten().tolist():
            self.found[first + row] = self._name(first + row, int(points[row]), _condition(rows, row))
        if self.found and self.policy != SKIP:
            others = f", and {len(self.found) - 1} more of its chunk" if len(self.found) > 1 else ""
            way_out = "" if self.policy is None else ", or leave such samples out with targets.on_bad_sample=skip"
            raise ValueError(
                f"{self._first.name} is not finite {self._first.where}{others}: the teacher, or the reference solver "
                f"on it, diverges; mend it, take another targets.seed{way_out}"
            )
        if len(self.found) > MOST * self.samples:
            raise ValueError(
                f"{len(self.found)} of {self.samples} {self.split} samples are not finite, and at most {MOST:.0%} are "
                f"left out; the first is {self._first.name}, {self._first.where}: mend the teacher, or take another "
                "reference solver"
            )
        return good.nonzero().flatten()

    def tell(self) -> None:
        """Say how many were left out."""
        if self.found:
            log.warning(
                "left out %d of %d %s samples, which are not finite; the first is %s, %s",
                *(len(self.found), self.samples, self.split, *self._first),
            )

    @property
    def _first(self) -> Found:
        return self.found[min(self.found)]

    def _name(self, position: int, point: int, condition: str) -> Found:
        level = float(self.path.from_clock(self.clock[point]))
        index = f"global index {SPLITS[self.split] + position}"
        where = f"from noise level {level:.4g} of the {self.path.name} path on"
        return Found(f"{self.split} sample {position} ({index}{condition})", where)


def first_bad(states: Tensor, slopes: Tensor) -> Tensor:
    """First point of each sample at which a state or a slope is not finite; the number of points where all are.

    Args:
        states: Shape: (samples, points, ...).
        slopes: Shape as states.
    """
    bad = ~(torch.isfinite(states.flatten(2)).all(2) & torch.isfinite(slopes.flatten(2)).all(2))
    return torch.where(bad.any(1), bad.int().argmax(1), bad.shape[1])


def _condition(rows: Mapping[str, Tensor], row: int) -> str:
    """The condition of a sample, where it is a number or a few: labels and scales, no embeddings."""
    leaves = [value[row] for name, value in sorted(rows.items()) if name.startswith("cond.")]
    shown = [f"{value.item():g}" for value in leaves if value.numel() == 1]
    return f", condition {' '.join(shown)}" if shown else ""
