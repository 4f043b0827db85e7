"""What the processes of one run share in fits without an optimizer: samples by position, sums over all of them."""

from __future__ import annotations

import os

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


def dealt(samples: int) -> int:
    """Samples that all processes together work on when `share` deals out so many: each counts as much as the first."""
    return -(-samples // count()) * count()


def total(value: Tensor) -> Tensor:
    """Sum a tensor over all processes; it comes back on its own device."""
    if not joined():
        return value
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
    moved = value.to(device, copy=True)
    distributed.all_reduce(moved)
    return moved.to(value.device)


def pick_device(name: str) -> str:
    """The device that a script runs on: "auto" is this process's CUDA device where there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={name} cannot be used here: {str(error).splitlines()[0]}") from None
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def processes() -> tuple[int, int]:
    """Rank of this process and number of processes that evaluate together."""
    from torch import distributed

    return (distributed.get_rank(), distributed.get_world_size()) if joined() else (0, 1)


def join_processes() -> bool:
    """Join the processes that torchrun has started, over gloo; only small host tensors travel between them.

    Returns:
        Whether there are several, so that `leave_processes` has something to leave.
    """
    from torch import distributed

    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return False
    distributed.init_process_group("gloo")
    return True


def leave_processes() -> None:
    """Wait for the other processes and leave them."""
    from torch import distributed

    distributed.barrier()
    distributed.destroy_process_group()


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum a host tensor over all processes, in place."""
    return value.copy_(total(value)) if joined() else value
