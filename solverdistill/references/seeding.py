"""Seeded noise: a sample's index decides its noise, whatever the batch, device or number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import Teacher

# Splits draw from disjoint ranges of sample indices, so that held-out samples never meet the training ones. All are
# below 2^32, because torch's CPU generator uses no more bits of its seed.
SPLITS = {"train": 0, "validation": 1 << 30, "test": 2 << 30, "fresh": 3 << 30}


def seeded_noise(indices: Sequence[int], teacher: Teacher, seed: int = 0) -> tuple[Tensor, Any]:
    """Unit-normal noise and conditions of samples, each from its own CPU generator.

    The result for a sample depends on (seed, index) alone: not on the batch, the device or the number of processes.

    Returns:
        Noise of shape (batch, *teacher.shape), float32, and a batched condition or None.
    """
    noises, conds = [], []
    for index in indices:
        generator = _generator_of(index, seed)
        noises.append(torch.randn(teacher.shape, generator=generator))
        conds.append(teacher.draw_cond(generator))
    cond = None if conds[0] is None else pytree.tree_map(lambda *leaves: torch.stack(leaves), *conds)
    return torch.stack(noises), cond


def noise_of(indices: Sequence[int], shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """The noise alone of `seeded_noise`. Shape: (batch, *shape), float32."""
    return torch.stack([torch.randn(shape, generator=_generator_of(index, seed)) for index in indices])


def _generator_of(index: int, seed: int) -> torch.Generator:
    """Generator of one sample: a permutation of the indices below 2^32, so no two of a seed share their noise."""
    if not 0 <= index < 1 << 32:
        raise ValueError(f"sample index {index} is not between 0 and 2^32: there are at most 2^30 samples in a split")
    mixed = int(index) ^ int(hashlib.sha256(str(seed).encode()).hexdigest()[:8], 16)
    return torch.Generator().manual_seed(mixed * 0x9E3779B1 % (1 << 32))
