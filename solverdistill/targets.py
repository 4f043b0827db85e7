"""Targets: seeds to reference trajectories, made on the training device, served as a Lightning data module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from solverdistill.denoiser import Teacher
from solverdistill.families.base import Family
from solverdistill.grids import Grid
from solverdistill.objectives import Batch
from solverdistill.settings import check_fields
from solverdistill.trajectories import SPLITS, Reference, seeded_noise

CHUNK = 64  # a batched network is not bit-identical to a single one, so targets are always made in aligned chunks
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TargetSettings:
    """How many samples, and how they are solved.

    Args:
        reference: The reference solver.
        train_samples: Trajectories to train on; reused in a new order once all were seen.
        validation_samples: Held-out trajectories that choose the best state.
        test_samples: Held-out trajectories of the final comparison.
        seed: Seed of noise and conditions.
    """

    reference: Reference
    train_samples: int = 1024
    validation_samples: int = 128
    test_samples: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("train_samples", "validation_samples", "test_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"targets.{name} must be at least 1, not {getattr(self, name)}")

    def count(self, split: str) -> int:
        """Samples of a split."""
        return getattr(self, f"{split}_samples")


class Targets(Dataset[Batch]):
    """Reference data of a split, on the host. Indexing gives one sample without batch dimension.

    Args:
        batch: All samples; `targets` has the batch second.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return self.batch.noise.shape[0]

    def take(self, index: Tensor) -> Batch:
        """Samples at the given positions, as a batch."""
        cond = None if self.batch.cond is None else pytree.tree_map(lambda leaf: leaf[index], self.batch.cond)
        return Batch(self.batch.noise[index], self.batch.targets[:, index], self.batch.end[index], cond)

    def __getitem__(self, index: int) -> Batch:
        return self.take(torch.tensor(index))


def make_targets(
    settings: TargetSettings,
    split: str,
    teacher: Teacher,
    denoiser: Any,
    family: Family | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    rule: Grid | None = None,
) -> Targets:
    """Solve the reference for every sample of a split.

    Args:
        settings: Counts, seed and reference solver.
        split: "train", "validation" or "test".
        teacher: Gives shape, path, noise range and conditions.
        denoiser: The teacher, possibly guided; on `device`.
        family: The student whose grid points are read out; None keeps end points only.
        device: Where the network runs.
        progress: Called with (split, done, total) after every chunk.
        rule: The student's grid rule, which a nested reference refines.
    Returns:
        Targets in float32 on the host.
    """
    total, parts = settings.count(split), []
    levels = [] if family is None else family.prepared_levels(family.init(0))[1:]
    for start in range(0, total, CHUNK):
        indices = range(SPLITS[split] + start, SPLITS[split] + start + CHUNK)
        noise, cond = seeded_noise(indices, teacher, settings.seed)
        moved = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, cond)
        with torch.inference_mode():
            trajectory = settings.reference.solve(teacher, denoiser, noise.to(device), moved, rule)
            end = trajectory.end().float().cpu()
            states = trajectory.at(levels).float().cpu() if levels else end[None]
        parts.append(Batch(noise, states, end, cond))
        if progress is not None:
            progress(split, min(start + CHUNK, total), total)
    return Targets(_joined(parts, total))


def _joined(parts: list[Batch], total: int) -> Batch:
    cond = None
    if parts[0].cond is not None:
        cond = pytree.tree_map(lambda *leaves: torch.cat(leaves)[:total], *[part.cond for part in parts])
    noise, end = (torch.cat([getattr(part, name) for part in parts])[:total] for name in ("noise", "end"))
    return Batch(noise, torch.cat([part.targets for part in parts], dim=1)[:, :total], end, cond)


class SeededBatches:
    """Endless-looking loader of `steps` batches whose i-th batch depends on (seed, i) alone.

    Every pass over the data has its own seeded order. `state_dict` lets Lightning resume in the middle.
    """

    def __init__(self, data: Targets, batch_size: int, steps: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.data, self.batch_size, self.steps, self.seed = data, batch_size, steps, seed
        self.position = 0

    def __len__(self) -> int:
        return self.steps

    def indices(self, step: int) -> Tensor:
        """Positions of the samples of batch `step`. Shape: (batch_size,)."""
        flat = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = {i // len(self.data) for i in flat}
        orders = {epoch: self._order(epoch) for epoch in epochs}
        return torch.stack([orders[i // len(self.data)][i % len(self.data)] for i in flat])

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
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


class TargetData(LightningDataModule):
    """Makes the targets of all splits when training starts, and serves them.

    Args:
        settings: Counts, seed and reference solver.
        teacher: The frozen network.
        denoiser: The teacher, possibly guided.
        family: The student.
        batch_size: Samples per training step.
        steps: Training steps.
        device: Where the network runs.
        progress: Called with (split, done, total).
        rule: The student's grid rule, which a nested reference refines.
    """

    def __init__(
        self,
        settings: TargetSettings,
        teacher: Teacher,
        denoiser: Any,
        family: Family,
        batch_size: int,
        steps: int,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        rule: Grid | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.teacher, self.denoiser, self.family = settings, teacher, denoiser, family
        self.batch_size, self.steps, self.device, self.progress, self.rule = batch_size, steps, device, progress, rule
        self._splits: dict[str, Targets] = {}

    def split(self, name: str) -> Targets:
        """Targets of a split, made at first use."""
        if name not in self._splits:
            family = None if name == "test" else self.family
            self._splits[name] = make_targets(
                self.settings, name, self.teacher, self.denoiser, family, self.device, self.progress, self.rule
            )
        return self._splits[name]

    def train_dataloader(self) -> SeededBatches:
        return SeededBatches(self.split("train"), self.batch_size, self.steps, self.settings.seed)

    def val_dataloader(self) -> DataLoader[Batch]:
        data = self.split("validation")
        return DataLoader(data, batch_size=min(len(data), 4 * CHUNK), collate_fn=_collate)


def _collate(samples: list[Batch]) -> Batch:
    cond = None
    if samples[0].cond is not None:
        cond = pytree.tree_map(lambda *leaves: torch.stack(leaves), *[sample.cond for sample in samples])
    noise, end = (torch.stack([getattr(sample, name) for sample in samples]) for name in ("noise", "end"))
    return Batch(noise, torch.stack([sample.targets for sample in samples], dim=1), end, cond)
