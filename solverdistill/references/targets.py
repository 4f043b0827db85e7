"""From seeds to reference trajectories to what a student learns from; made once, on the training device, and cached.

A reference trajectory depends on the teacher, its guidance, the reference solver with its grid, the seed and the split,
and not on the student (but for a `nested` reference, which refines the student's grid). What a student gets of it are
the states at its grid points, or the whole trajectory where its noise levels are learned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import RuleGuided
from solverdistill.denoisers.wrappers import Checkpointed, Counted, Guided, InParts, Thresholded
from solverdistill.families.base import Family
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import float64
from solverdistill.references.bad_samples import SKIP, STOP, BadSamples
from solverdistill.references.batch import Batch
from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.references.shard_cache import ShardCache
from solverdistill.references.solving import Reference
from solverdistill.references.trajectory import Trajectory
from solverdistill.support.files import default_root, expand
from solverdistill.support.memory import lower
from solverdistill.support.processes import count
from solverdistill.support.type_checks import LARGEST_SEED, check_fields, check_ranges

CHUNK = 64  # samples; a batched network is not bit-identical to a single one, so targets are made in aligned chunks
Progress = Callable[[str, int, int], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetSettings:
    """How many samples, how they are solved, and where they are kept.

    Args:
        reference: The reference solver.
        train_samples: Trajectories to train on; reused in a new order once all were seen.
        validation_samples: Held-out trajectories that choose the best state.
        test_samples: Held-out trajectories of the final comparison.
        seed: Seed of noise and conditions.
        cache: Folder that trajectories are kept in; "default" is `cache.default_root()`, None keeps them in memory.
        chunk: Samples that the reference solves as one batch, aligned to their global index; part of the cache's key.
        on_bad_sample: What happens where the teacher gives a sample that is not finite: "stop" names it and ends,
            "skip" leaves up to a hundredth of a split out.
        measure: What of the reference is open, "grid", "steps" or both, and chosen by measuring before targets are made
            (`choosing.choose_reference`); its value in `reference` holds where a run is too small to measure.
    """

    reference: Reference
    train_samples: int = 1024
    validation_samples: int = 128
    test_samples: int = 512
    seed: int = 0
    cache: str | None = None
    chunk: int = CHUNK
    on_bad_sample: str = STOP
    measure: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        counts = [f"{split}_samples" for split in ("train", "validation", "test")]
        check_ranges(self, "targets.", *counts, least=1, most=SPLITS["validation"])
        check_ranges(self, "targets.", "chunk", least=1)
        if self.cache is not None:
            expand(self.root)
        check_ranges(self, "targets.", "seed", least=0, most=LARGEST_SEED)
        if self.on_bad_sample not in (STOP, SKIP):
            raise ValueError(f"targets.on_bad_sample must be {STOP} or {SKIP}, not {self.on_bad_sample!r}")

    @property
    def root(self) -> Path:
        """Folder of the cache, where there is one."""
        return default_root() if self.cache in (None, "default") else Path(self.cache or "")

    def count(self, split: str) -> int:
        """Samples of a split."""
        return getattr(self, f"{split}_samples")


class Targets:
    """Reference data of a split, on the host.

    Args:
        batch: All samples, without whole trajectories.
        trajectories: Gives the whole trajectories of samples at given positions; None leaves them out.
    """

    def __init__(self, batch: Batch, trajectories: Callable[[Tensor], Trajectory] | None = None) -> None:
        self.batch, self.trajectories = batch, trajectories

    def __len__(self) -> int:
        return self.batch.noise.shape[0]

    def take(self, index: Tensor) -> Batch:
        """Samples at the given positions, as a batch. index: shape (batch,)."""
        cond = None if self.batch.cond is None else pytree.tree_map(lambda leaf: leaf[index], self.batch.cond)
        reference = None if self.trajectories is None else self.trajectories(index)
        noise, targets, end = self.batch.noise[index], self.batch.targets[:, index], self.batch.end[index]
        return Batch(noise, targets, end, cond, reference, index)


def describe(denoiser: Any) -> dict[str, Any]:
    """What decides the output of a denoiser, JSON-able: the teacher's fingerprint and the wrappers around it.

    Raises:
        ValueError: the denoiser is none whose description is known.
    """
    if isinstance(denoiser, Teacher):
        return {"teacher": denoiser.name, "fingerprint": denoiser.fingerprint()}
    same = isinstance(denoiser, (Counted, Checkpointed, InParts))
    if same or (isinstance(denoiser, Guided) and denoiser.scale == 1):
        return describe(denoiser.denoiser)
    if isinstance(denoiser, Guided):
        return {"guidance": denoiser.scale, "of": describe(denoiser.denoiser)}
    if isinstance(denoiser, RuleGuided):
        return {"guidance": denoiser.rule.description(), "of": describe(denoiser.denoiser)}
    if isinstance(denoiser, Thresholded):
        return {"threshold_quantile": denoiser.quantile, "of": describe(denoiser.denoiser)}
    raise ValueError(
        f"the target cache cannot tell what a {type(denoiser).__name__} computes; make it a Teacher, or set "
        "targets.cache to null"
    )


@dataclass(frozen=True)
class Source:
    """The reference trajectories of a split, by chunks of `settings.chunk` samples.

    Args:
        settings: Seed, reference solver and cache.
        split: "train", "validation" or "test".
        teacher: Gives shape, path, noise range and conditions.
        denoiser: The teacher, possibly guided; on `device`.
        device: Where the network runs.
        rule: The student's grid rule, which a nested reference refines.
        described: What `describe` says of the denoiser, where it is known: it reads all weights.
    """

    settings: TargetSettings
    split: str
    teacher: Teacher
    denoiser: Any
    device: torch.device | str = "cpu"
    rule: Grid | None = None
    described: dict[str, Any] | None = None

    def solve(self, chunk: int) -> dict[str, Tensor]:
        """Solve one chunk: noise, condition leaves, states and slopes, samples first, float32 on the host."""
        size = self.settings.chunk
        start = SPLITS[self.split] + chunk * size
        noise, cond = seeded_noise(range(start, start + size), self.teacher, self.settings.seed)
        moved = None if cond is None else pytree.tree_map(lambda leaf: leaf.to(self.device), cond)
        with torch.no_grad(), lower("solving references", f"lower targets.chunk ({size})"):
            solved = self.settings.reference.solve(self.teacher, self.denoiser, noise.to(self.device), moved, self.rule)
        leaves = {f"cond.{i}": leaf for i, leaf in enumerate(pytree.tree_leaves(cond)) if cond is not None}
        states, slopes = (x.float().cpu().transpose(0, 1).contiguous() for x in (solved.states, solved.slopes))
        return {"noise": noise, "states": states, "slopes": slopes, **leaves}

    def missing(self, samples: int) -> int:
        """Samples to solve for so many: whole chunks that the cache has not, or without one all in every process."""
        size, cache = self.settings.chunk, self.cache()
        chunks = range(-(-samples // size))
        return size * (count() * len(chunks) if cache is None else len(cache.missing(chunks)))

    def bad_samples(self, samples: int, policy: str | None) -> BadSamples:
        """Looks for samples that are not finite among the first of the split; see there for the policy."""
        return BadSamples(policy, self.split, samples, self.settings.chunk, self.teacher.path, self.clock)

    def trajectory(self, rows: dict[str, Tensor]) -> Trajectory:
        """The trajectories of some rows."""
        states, slopes = (rows[name].transpose(0, 1) for name in ("states", "slopes"))
        return Trajectory(self.teacher.path, self.clock, states, slopes)

    @property
    def clock(self) -> Tensor:
        """Clock of the fine grid. Shape: (points,)."""
        path = self.teacher.path
        return path.clock(float64(self.settings.reference.levels(path, self.teacher.noise_range, self.rule)))

    def missing_bytes(self, cache: ShardCache, samples: int) -> int:
        """What is missing of so many samples takes on disk."""
        return len(cache.missing(range(-(-samples // self.settings.chunk)))) * self.chunk_bytes()

    def chunk_bytes(self) -> int:
        """Size of a chunk of trajectories on disk, but for conditions."""
        return 4 * self.settings.chunk * (1 + 2 * len(self.clock)) * torch.Size(self.teacher.shape).numel()

    def cond(self, rows: dict[str, Tensor]) -> Any:
        """The conditions of some rows, in the structure in which the teacher draws them."""
        if "cond.0" not in rows:
            return None
        structure = self._cond_structure
        return pytree.tree_unflatten([rows[f"cond.{i}"] for i in range(structure.num_leaves)], structure)

    @cached_property
    def _cond_structure(self) -> pytree.TreeSpec:
        _, example = seeded_noise([SPLITS[self.split]], self.teacher, self.settings.seed)
        return pytree.tree_structure(example)

    def cache(self) -> ShardCache | None:
        """Where the trajectories are kept on disk; None for nowhere."""
        settings, reference = self.settings, self.settings.reference
        if settings.cache is None:
            return None
        facts = {
            "denoiser": self.described or describe(self.denoiser),
            "reference": reference.description(self.teacher.path, self.teacher.noise_range, self.rule),
            "seed": settings.seed,
            "split": self.split,
            "dtype": "float32",
        }
        return ShardCache(settings.root, f"{self.teacher.name}-{self.split}", facts, settings.chunk)


def make_targets(
    settings: TargetSettings,
    split: str,
    teacher: Teacher,
    denoiser: Any,
    family: Family | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    rule: Grid | None = None,
    dense: bool = False,
    described: dict[str, Any] | None = None,
) -> Targets:
    """Read the reference trajectories of a split from the cache, solving those that it has not, for a student.

    With several processes each solves chunks that no other is solving and finds the rest in the cache; without a cache
    each solves all. The last chunk is solved whole, so a sample does not depend on how many are wanted. Samples that
    are not finite are stopped at or left out; see `bad_samples`.

    Args:
        settings: Counts, seed, reference solver and cache.
        split: "train", "validation" or "test".
        teacher: Gives shape, path, noise range and conditions.
        denoiser: The teacher, possibly guided; on `device`.
        family: The student whose grid points are read out; None keeps end points only.
        device: Where the network runs.
        progress: Called with (split, done, total) after every chunk.
        rule: The student's grid rule, which a nested reference refines.
        dense: Give whole trajectories, as a student that learns its noise levels always gets them.
        described: What `describe` says of the denoiser, where it is known.
    Returns:
        Targets in float32 on the host; whole trajectories stay on disk until a batch asks for them.
    Raises:
        ValueError: a sample is not finite, or there is no room for the cache.
        OutOfMemory: there is no memory for a chunk.
    """
    source = Source(settings, split, teacher, denoiser, device, rule, described)
    total = settings.count(split)
    dense = family is not None and (dense or family.learns_levels)
    levels = [] if family is None or dense else family.prepared_levels(family.init(0))[1:]
    size = settings.chunk
    chunks, cache = range(-(-total // size)), source.cache()

    def report(done: int) -> None:
        if progress is not None:
            progress(split, min(done * size, total), total)

    bad = source.bad_samples(total, settings.on_bad_sample)

    def make(chunk: int) -> dict[str, Tensor]:
        rows = source.solve(chunk)
        bad.keep(chunk, rows)  # before it is kept, and before the next one is made
        return rows

    if cache is not None:
        found = cache.fill(chunks, make, report, source.chunk_bytes())
        hits = sum(min(size, total - chunk * size) for chunk in found)
        if hits:
            log.info("%d of %d reference trajectories (%s) from the cache %s", hits, total, split, cache.folder)
    parts, kept = list[Batch](), list[Tensor]()
    for chunk in chunks:
        rows = source.solve(chunk) if cache is None else cache.read(chunk)
        good = bad.keep(chunk, rows)  # of the cache too: it holds what another run left out
        whole = len(good) == min(size, total - chunk * size)
        rows = {name: value[: len(good)] if whole else value[good] for name, value in rows.items()}
        kept.append(chunk * size + good)
        trajectory = source.trajectory(rows)
        end = trajectory.end()
        states = trajectory.at(levels) if levels else end.expand(0 if dense else 1, *end.shape)
        whole = trajectory if dense and cache is None else None
        parts.append(Batch(rows["noise"], states, end, source.cond(rows), whole))
        if cache is None:
            report(chunk + 1)
    bad.tell()
    batch, positions = _joined(parts), torch.cat(kept)
    if not dense:
        return Targets(batch)
    if cache is None:
        reference = batch.reference
        assert reference is not None
        return Targets(batch._replace(reference=None), reference.take)
    return Targets(batch, lambda index: source.trajectory(cache.take(positions[index], ("states", "slopes"))))


def _joined(parts: list[Batch]) -> Batch:
    cond = None
    if parts[0].cond is not None:
        cond = pytree.tree_map(lambda *leaves: torch.cat(leaves), *[part.cond for part in parts])
    noise, end = (torch.cat([getattr(part, name) for part in parts]) for name in ("noise", "end"))
    wholes = [part.reference for part in parts if part.reference is not None]
    reference = None
    if wholes:
        states, slopes = (torch.cat([getattr(whole, name) for whole in wholes], dim=1) for name in ("states", "slopes"))
        reference = replace(wholes[0], states=states, slopes=slopes)
    return Batch(noise, torch.cat([part.targets for part in parts], dim=1), end, cond, reference)
