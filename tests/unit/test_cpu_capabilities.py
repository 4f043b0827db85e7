"""What is shipped does not depend on the kind of CPU that made it: each kind of kernels in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CAPABILITIES = ("default", "avx2", "avx512")
HERE = torch.backends.cpu.get_cpu_capability().lower()
CODE = """
import torch
from solverdistill.importers.known_models import find_model
from solverdistill.importers.levels import published_levels
levels = [published_levels("time_uniform", n, find_model("cifar10"), rho) for n in range(2, 20) for rho in (1.0, 2.0)]
print(torch.backends.cpu.get_cpu_capability().lower(), levels)
"""


def answer(capability: str) -> str:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    command, root = [sys.executable, "-c", CODE], Path(__file__).parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=True, timeout=300)
    name, _, levels = ran.stdout.partition(" ")
    assert name == capability
    return levels


@pytest.mark.slow
@pytest.mark.skipif(HERE not in CAPABILITIES[1:], reason="this CPU has one kind of kernels")
def test_published_schedules_are_the_same_to_the_last_bit() -> None:
    here = CAPABILITIES[: CAPABILITIES.index(HERE) + 1]
    assert len({answer(capability) for capability in here}) == 1
