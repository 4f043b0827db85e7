"""Serves targets to fits: splits made when first asked for, batches that depend on (seed, step) alone."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.families.base import Family
from solverdistill.noise.grids import Grid
from solverdistill.references.batch import Batch
from solverdistill.references.choice import Choice
from solverdistill.references.targets import Progress, Source, Targets, TargetSettings, describe, make_targets

SEED_STRIDE = 1_000_003  # between the orders of two seeds, a prime


class SeededBatches:
    """Endless-looking loader of `steps` batches whose i-th batch depends on (seed, i) alone.

    Every pass over the data has its own seeded order. With several processes, process r of w takes every w-th sample of
    the global batch, beginning with the r-th, so that together they see the same batch whatever w is. `state_dict` lets
    Lightning resume in the middle.

    Args:
        data: The samples.
        batch_size: Samples per global batch.
        steps: Number of batches.
        seed: Seed of the orders.
        rank: r, this process.
        world: w, the number of processes.
    """

    def __init__(
        self, data: Targets, batch_size: int, steps: int, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if batch_size % world:
            raise ValueError(
                f"a batch of {batch_size} cannot be shared evenly by {world} processes; "
                f"set fit.batch_size to a multiple of {world}"
            )
        self.data, self.batch_size, self.steps, self.seed = data, batch_size, steps, seed
        self.rank, self.world = rank, world
        self.position = 0

    def __len__(self) -> int:
        return self.steps

    def indices(self, step: int) -> Tensor:
        """Positions of this process's samples of batch `step`. Shape: (batch_size / world,)."""
        flat = range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world)
        orders = {epoch: self._order(epoch) for epoch in {i // len(self.data) for i in flat}}
        return torch.stack([orders[i // len(self.data)][i % len(self.data)] for i in flat])

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * SEED_STRIDE + epoch) % 2**32)  # it keeps 32 bits
        return torch.randperm(len(self.data), generator=generator)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.position, self.steps):
            self.position = step + 1
            yield self.data.take(self.indices(step))
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class TargetData:
    """Makes the targets of a split when it is first asked for, and serves them.

    Args:
        settings: Counts, seed, reference solver and cache.
        teacher: The frozen network.
        denoiser: The teacher, possibly guided.
        family: The student.
        device: Where the network runs.
        progress: Called with (split, done, total).
        rule: The student's grid rule, which a nested reference refines.
        dense: Training batches carry whole trajectories, as they always do for a student that learns its noise levels.
        choice: What is known of the reference's error; None for nothing.
    """

    def __init__(
        self,
        settings: TargetSettings,
        teacher: Teacher,
        denoiser: Any,
        family: Family,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        rule: Grid | None = None,
        dense: bool = False,
        choice: Choice | None = None,
    ) -> None:
        self.choice = Choice(settings.reference) if choice is None else choice
        self.settings, self.teacher, self.denoiser, self.family, self.dense = settings, teacher, denoiser, family, dense
        self.device, self.progress, self.rule = device, progress, rule
        self._splits: dict[str, Targets] = {}

    def for_student(self, family: Family) -> TargetData:
        """The same targets for another student; what does not depend on the student is not made again.

        A nested reference stays that of the grid that was configured: one that begins at a lower noise level, as a race
        may choose, would end elsewhere.
        """
        other = copy(self)
        other.family = family
        if not (self.dense or (self.family.learns_levels and family.learns_levels)):
            other._splits = {}
        return other

    @cached_property
    def described(self) -> dict[str, Any] | None:
        """What decides the denoiser's output, for the cache; it reads all weights, so it is found once."""
        return None if self.settings.cache is None else describe(self.denoiser)

    def look_for_room(self, *names: str) -> None:
        """Refuse a cache without room for what it has not of some splits, before the first of them is made.

        Raises:
            ValueError: there is no room; the message says where, how much is needed and how much is left.
        """
        of = self.teacher, self.denoiser, self.device, self.rule, self.described
        needed, cache = 0, None
        for source in (Source(self.settings, name, *of) for name in names):
            cache = source.cache()
            needed += 0 if cache is None else source.missing_bytes(cache, self.settings.count(source.split))
        if cache is not None:
            cache.look_for_room(needed)

    def split(self, name: str) -> Targets:
        """Targets of a split, made at first use; those of "test" are end points only."""
        if name not in self._splits:
            self._splits[name] = make_targets(
                self.settings,
                name,
                self.teacher,
                self.denoiser,
                None if name == "test" else self.family,
                self.device,
                self.progress,
                self.rule,
                self.dense,
                self.described,
            )
        return self._splits[name]
