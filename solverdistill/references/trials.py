"""Candidate references on a few samples: each solved once, and kept for the jobs that ask for it again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill import families
from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.wrappers import Counted
from solverdistill.noise.grids import Grid, lower_start
from solverdistill.noise.paths import Flow
from solverdistill.programs.playing import sample
from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.references.shard_cache import ShardCache
from solverdistill.references.solving import Reference
from solverdistill.references.targets import Source, TargetSettings, describe

GRIDS: tuple[tuple[str, float | None], ...] = (
    ("polynomial", 7.0),
    ("logsnr", None),
    ("time_uniform", 1.0),
    ("quadratic", None),
)
SHIFTS = (0.0, 1.0)  # of log(alpha / sigma) where the classical solvers begin
# Numbers of shards: steps + 10,000 times the grid, or 100,000 + evaluations; with the number of samples before them.
GRID_SHARD, CLASSICAL_SHARD, SAMPLES_SHARD = 10_000, 100_000, 1_000_000


class Trials:
    """End points of candidate references from the noise of the first training samples.

    Args:
        settings: Seed, cache, and the reference whose open settings are tried.
        teacher: Gives shape, path, noise range and conditions.
        denoiser: The teacher, possibly guided; on `device`.
        device: Where the network runs.
        samples: Number of samples.
    Attributes:
        grids: The reference on every grid that the path allows, with any number of steps.
        samples: Samples that are looked at; lower it to save evaluations.
        spent: Evaluations that everything asked for so far takes, whether or not it was found in the cache.
        evaluations: Those that were made.
    """

    def __init__(
        self, settings: TargetSettings, teacher: Teacher, denoiser: Any, device: torch.device | str, samples: int
    ) -> None:
        self.settings, self.teacher, self.device, self.samples = settings, teacher, device, samples
        self.spent, self._kept = 0, dict[int, Tensor]()
        self._denoiser = Counted(denoiser)
        fixed = settings.reference
        self.grids = [fixed]
        if "grid" in settings.measure:
            every = [replace(fixed, grid=grid, rho=rho) for grid, rho in GRIDS]
            self.grids = [one for one in every if self._is_possible(one)]
        self._cache: ShardCache | None = None
        if settings.cache is not None:
            facts = {
                "kept": "end points of candidate references",
                "denoiser": describe(denoiser),
                "path": teacher.path.hyperparameters(),
                "noise_range": list(teacher.noise_range),
                "solver": fixed.solver,
                "grids": [[one.grid, one.rho] for one in self.grids],
                "seed": settings.seed,
            }
            self._cache = ShardCache(settings.root, f"{teacher.name}-candidates", facts, samples)

    @property
    def evaluations(self) -> int:
        return self._denoiser.images

    def cost(self, reference: Reference, samples: int = 1) -> int:
        """Evaluations that a solve of so many samples takes."""
        return samples * (math.ceil(self._per_step * reference.steps) + 1)

    @cached_property
    def _per_step(self) -> float:
        few = replace(self.grids[0], steps=4).levels(self.teacher.path, self.teacher.noise_range)
        return families.build(self.settings.reference.solver, few, self.teacher.path).nfe / 4

    def end(self, reference: Reference) -> Tensor:
        """End points of a candidate. Shape: (samples, ...), float32 on the host."""
        number = GRID_SHARD * [(one.grid, one.rho) for one in self.grids].index((reference.grid, reference.rho))
        return self._get(number + reference.steps, self.cost(reference), lambda: self._solve(reference))

    def classical_cost(self, nfe: int, samples: int = 1) -> int:
        """Evaluations that `classical` takes."""
        return samples * 2 * len(SHIFTS) * nfe

    def classical(self, nfe: int) -> Tensor:
        """End points of a classical solver of few evaluations, from the top of the noise range and from lower levels.

        It is iPNDM of order 3, which came first or close to it on every network measured, on the two grids that it is
        usually given. Shape: (samples, solvers, ...), float32 on the host.
        """
        return self._get(CLASSICAL_SHARD + nfe, self.classical_cost(nfe), lambda: self._play(nfe))

    def _get(self, number: int, cost: int, make: Callable[[], Tensor]) -> Tensor:
        if number not in self._kept:
            self.spent += self.samples * cost
            if self._cache is None:
                self._kept[number] = make()
            else:
                shard = number + SAMPLES_SHARD * self.samples
                self._cache.fill([shard], lambda _: {"end": make()})
                self._kept[number] = self._cache.read(shard)["end"]
        return self._kept[number][: self.samples]

    def _solve(self, reference: Reference) -> Tensor:
        settings = replace(self.settings, reference=reference, chunk=self.samples, measure=(), cache=None)
        source = Source(settings, "train", self.teacher, self._denoiser, self.device)
        return source.trajectory(source.solve(0)).end().contiguous()

    def _play(self, nfe: int) -> Tensor:
        first = SPLITS["train"]
        noise, cond = seeded_noise(range(first, first + self.samples), self.teacher, self.settings.seed)
        noise = noise.to(self.device)
        cond = None if cond is None else pytree.tree_map(lambda leaf: leaf.to(self.device), cond)
        ends: list[Tensor] = []
        for rule in self._classical_rules():
            program = families.build_for_nfe("ipndm", nfe, rule, self.teacher.path, max_order=3).program()
            with torch.no_grad():
                ends.append(sample(program, self._denoiser, noise, cond).float().cpu())
        return torch.stack(ends, dim=1)

    def _classical_rules(self) -> list[Grid]:
        path, (start, end) = self.teacher.path, self.teacher.noise_range
        kinds = ("time_uniform", "polynomial") if isinstance(path, Flow) else ("quadratic", "polynomial")
        rules: list[Grid] = []
        for rule in (Grid(kind, start=start, end=end) for kind in kinds):
            for shift in SHIFTS:
                try:
                    rules.append(lower_start(rule, path, shift) if shift else rule)
                except ValueError:  # nothing is left of the noise range
                    continue
        return rules

    def _is_possible(self, reference: Reference) -> bool:
        try:
            reference.levels(self.teacher.path, self.teacher.noise_range)
        except ValueError:
            return False
        return True


def distance(first: Tensor, second: Tensor) -> float:
    """Mean over samples of the RMSE between two sets of end points; infinite where one has diverged."""
    value = (first.double() - second.double()).square().flatten(1).mean(1).sqrt().mean().item()
    return value if math.isfinite(value) else math.inf
