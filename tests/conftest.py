"""Every test starts from a seed of its own, printed where the test fails."""

from __future__ import annotations

import os
import zlib

import pytest
import torch

# The tensors here are too small to share: several threads on a busy machine cost ten times the time of one.
torch.set_num_threads(int(os.environ.get("SOLVERDISTILL_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seed torch from the test's name, or from the environment to repeat a failure or to try others."""
    value = int(os.environ.get("SOLVERDISTILL_TEST_SEED", zlib.crc32(request.node.nodeid.encode())))
    torch.manual_seed(value)
    print(f"torch seed {value}; repeat with SOLVERDISTILL_TEST_SEED={value}")
    return value
