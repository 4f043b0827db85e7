"""What a run changes in its process, and gives back: random numbers, modes of torch, warning filters, logging."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from solverdistill.support.inference import with_gradients


@contextmanager
def own_surroundings(seed: int) -> Iterator[None]:
    """The root of every run: random numbers of its own, gradients whatever the caller switched off, no chatter."""
    with quiet_lightning(), own_randomness(seed), with_gradients():
        yield


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Random numbers of torch that depend on the seed alone, and leave those outside as they were."""
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's talk of devices, tips, and folders of resumed runs; a run says its own things."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The dirpath has changed")  # a resumed run has a folder of its own
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # lightning's own use of torch
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(before)
