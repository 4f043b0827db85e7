"""What the processes of one run share in fits without an optimizer: samples by position, sums over all of them."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def joined() -> bool:
    """Whether this is one of several processes that can talk to each other."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def count() -> int:
    """Number of processes."""
    return distributed.get_world_size() if joined() else 1


def share(positions: Tensor) -> Tensor:
    """This process's part of some positions: every w-th, beginning with the r-th, for process r of w."""
    return positions[distributed.get_rank() :: distributed.get_world_size()] if joined() else positions


def total(value: Tensor) -> Tensor:
    """Sum a tensor over all processes; it comes back on its own device."""
    if not joined():
        return value
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
    moved = value.to(device, copy=True)
    distributed.all_reduce(moved)
    return moved.to(value.device)
