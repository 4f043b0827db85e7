"""What restarts work on: the samples of a teacher, their references, and what the product makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from solverdistill import distill
from solverdistill.families.base import Family, Params
from solverdistill.fits.batches import mean_error, take
from solverdistill.fits.report import Meter
from solverdistill.references.batch import Batch
from solverdistill.references.targets import Targets, TargetSettings, make_targets

from .exact import BATCH, Bench
from .teachers import GUIDANCE

SOLVED = 64  # training samples with whole trajectories, for least squares


@dataclass(frozen=True)
class Samples:
    """How many samples restarts fit to and choose by, and the steps of their reference."""

    train: int
    held_out: int
    steps: int


SAMPLES = {
    "digits": Samples(512, 512, 160),
    "emnist": Samples(512, 512, 160),
    "mnist": Samples(512, 256, 160),
    "emoji32": Samples(256, 128, 70),
}


@dataclass(frozen=True)
class Cell:
    """What a floor is asked for: a family on a teacher at a cost, "nfe" or "depth"."""

    teacher: str
    family: str
    cost: str
    wanted: int


class Start(NamedTuple):
    """Where a restart begins, and what it took to get there."""

    label: str
    family: Family
    params: Params
    evaluations: int


@dataclass(frozen=True)
class Ground:
    """A teacher with the samples that restarts work on."""

    bench: Bench
    samples: Samples

    @property
    def settings(self) -> TargetSettings:
        """References of the samples, which the output folder keeps."""
        reference = replace(self.bench.solve.reference, steps=self.samples.steps)
        cache = str(self.bench.folder / "targets")
        return TargetSettings(reference, self.samples.train, self.samples.held_out, cache=cache)

    def split(self, name: str, family: Family | None = None) -> Targets:
        """Samples of a split, with whole trajectories for a family."""
        bench = self.bench
        return make_targets(self.settings, name, bench.teacher, bench.denoiser, family, dense=family is not None)

    @cached_property
    def train(self) -> Batch:
        """Samples to fit."""
        return self.split("train").batch

    @cached_property
    def held_out(self) -> Batch:
        """Samples to choose by."""
        return self.split("validation").batch

    def error(self, start: Start, samples: int | None = None) -> float:
        """Held-out error of a start, on the first samples or on all."""
        program, held_out = start.family.program(start.params).detach(), self.samples.held_out
        few = take(self.held_out, torch.arange(held_out if samples is None else min(samples, held_out)))
        with torch.no_grad():
            return mean_error(program, self.bench.denoiser, few, BATCH, Meter())

    def solved(self, family: Family) -> Batch:
        """A few training samples with their trajectories."""
        return self.split("train", family).take(torch.arange(min(SOLVED, self.samples.train)))

    def distilled(self, solver: Mapping[str, Any], nfe: int | None, seed: int) -> Start:
        """What the product makes of a solver."""
        own, bench = self.settings, self.bench
        reference = {"grid": own.reference.grid, "steps": own.reference.steps}
        sizes = {"train_samples": own.train_samples, "validation_samples": own.validation_samples}
        targets = {"reference": reference, "cache": own.cache, **sizes}
        guidance = GUIDANCE.get(bench.name, 1.0)
        done = distill(
            bench.teacher, dict(solver), nfe, guidance, targets=targets, seed=seed, device="cpu", progress=False
        )
        return Start(f"fitted {solver['name']}", done.family, done.params, done.evaluations)
