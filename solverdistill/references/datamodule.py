"""Targets as Lightning asks for them."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from solverdistill.references.serving import SeededBatches, TargetData
from solverdistill.references.targets import Targets


class TargetDataModule(LightningDataModule):
    """Serves targets to a trainer.

    Args:
        data: The targets.
        batch_size: Samples per training step, of all processes together.
        steps: Training steps.
        seed: Seed of the order of the training samples; the samples themselves depend on that of the targets.
    """

    def __init__(self, data: TargetData, batch_size: int, steps: int, seed: int = 0) -> None:
        super().__init__()
        self.data, self.batch_size, self.steps, self.seed = data, batch_size, steps, seed

    def train_dataloader(self) -> SeededBatches:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return SeededBatches(self.data.split("train"), self.batch_size, self.steps, self.seed, rank, world)

    def val_dataloader(self) -> DataLoader[Any]:
        """All held-out samples in every process, without whole trajectories: validation compares end points."""
        data = Targets(self.data.split("validation").batch)
        batches: Any = [data.take(index) for index in torch.arange(len(data)).split(4 * self.data.settings.chunk)]
        return DataLoader(batches, batch_size=None, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch
