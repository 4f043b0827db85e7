"""End points of the reference solver for many samples: solved once, kept on disk without their trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solverdistill.references.shard_cache import ShardCache
from solverdistill.references.targets import Source
from solverdistill.support.processes import processes


class EndPoints:
    """Noise, conditions and reference end points of the first samples of a split.

    They are solved in the fixed chunks of the targets, so that a sample does not depend on how many are asked for, and
    cached beside them: two images for each sample in the place of a whole trajectory.

    Args:
        source: Gives seed, split, teacher, reference solver and cache.
        samples: Number of samples.
    """

    def __init__(self, source: Source, samples: int) -> None:
        self.source, self.samples, self.chunk = source, samples, source.settings.chunk
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._bad = source.bad_samples(samples, None)  # all solvers are measured on the samples asked for
        targets = source.cache()
        self._cache: ShardCache | None = None
        if targets is not None:
            facts = {**targets.facts, "kept": "end points"}
            name = f"{source.teacher.name}-{source.split}-ends"
            self._cache = ShardCache(targets.folder.parent, name, facts, self.chunk)

    def __len__(self) -> int:
        return self.samples

    def prepare(self, report: Callable[[int], None], batch_size: int) -> None:
        """Solve what is not there yet; with several processes each solves a part.

        Args:
            report: Called with the number of samples that are there.
            batch_size: Samples of a batch, as `batches` takes it.
        """
        chunks = range(-(-self.samples // self.chunk))
        if self._cache is not None:
            self._cache.fill(chunks, self._solve, lambda done: report(min(done * self.chunk, self.samples)))
            return
        batches, size = self.batches(batch_size), self.chunk
        own = sorted({c for start, stop in batches for c in range(start // size, -(-stop // size))})
        for done, chunk in enumerate(own, 1):
            self._kept[chunk] = self._solve(chunk)
            report(min(done * self.chunk, self.samples))

    def batches(self, batch_size: int) -> list[tuple[int, int]]:
        """First index and end of this process's batches: every w-th one of w processes, beginning with the r-th."""
        rank, world = processes()
        starts = range(0, self.samples, batch_size)[rank::world]
        return [(start, min(start + batch_size, self.samples)) for start in starts]

    def take(self, start: int, stop: int) -> tuple[Tensor, Any, Tensor]:
        """Noise, conditions and end points of the samples from `start` up to `stop`, on the host."""
        parts: list[dict[str, Tensor]] = []
        for chunk in range(start // self.chunk, -(-stop // self.chunk)):
            rows = self._cache.read(chunk) if self._cache is not None else self._kept[chunk]
            first = chunk * self.chunk
            parts.append({name: value[max(start - first, 0) : stop - first] for name, value in rows.items()})
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return joined["noise"], self.source.cond(joined), joined["end"]

    def _solve(self, chunk: int) -> dict[str, Tensor]:
        rows = self.source.solve(chunk)
        self._bad.keep(chunk, rows)
        end = self.source.trajectory(rows).end().contiguous()
        return {"end": end, **{name: value for name, value in rows.items() if name not in ("states", "slopes")}}
