"""What a report says about where its numbers come from."""

from __future__ import annotations

import os
import platform
import shlex
import sys

import torch


def describe(device: torch.device) -> str:
    """The machine, without names."""
    threads = torch.get_num_threads()
    cores = f"{os.cpu_count()} {platform.machine()} cores, {threads} thread{'s' if threads > 1 else ''}"
    system = f"{cores}, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)}, {system}" if device.type == "cuda" else f"CPU, {system}"


def command() -> str:
    """The command line that was typed."""
    return shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]])
