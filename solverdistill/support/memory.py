"""Work that a device has no memory for: done in smaller parts where it can be, one sentence where it cannot.

What is done in parts has to come out the same whatever their size, up to the rounding of kernels that depend on it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")
# What devices without an exception of their own say: the host, Apple's GPUs, and libraries of NVIDIA's.
PHRASES = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
log = logging.getLogger(__name__)


class OutOfMemory(MemoryError):
    """The device has no memory left; the sentence names the setting to lower, and its value."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the host, has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


class Parts:
    """Samples in parts, at most `size` of them; it is halved, for good, where there is no memory for so many.

    Args:
        size: Samples of a part; None takes all at once.
        what: What takes the memory, for the line that says that parts became smaller.
    """

    def __init__(self, size: int | None, what: str) -> None:
        self.size, self.what = size, what

    def run(self, samples: int, work: Callable[[slice], Result]) -> list[Result]:
        """Do some work on all samples; what was done before memory ran out is kept.

        Args:
            samples: Number of samples.
            work: Does it for the samples of a slice. It is begun again with fewer, so it changes nothing else.
        Raises:
            RuntimeError, MemoryError: there is no memory for a single sample.
        """
        results, done, first = list[Result](), 0, self.size
        while done < samples:
            size = min(self.size or samples, samples - done)
            try:
                results.append(work(slice(done, done + size)))
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self.size = (size + 1) // 2
            else:
                done += size
                continue
            release()  # not before the traceback is gone, which holds what the work had made
        if self.size != first:
            log.warning(
                "no memory for %s of %d samples at once; going on with %d at a time",
                self.what,
                first or samples,
                self.size,
            )
        return results


def release() -> None:
    """Give back what torch keeps of a device's memory for later use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def lower(what: str, *settings: str) -> Iterator[None]:
    """Where memory runs out in this block, say which settings to lower.

    Args:
        what: What the block does, "gradient descent".
        settings: What to do about it, the best first, with the values there are: "lower targets.chunk (64)".
    Raises:
        OutOfMemory: in the place of whatever the device said.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{what} ran out of memory ({reason(error)}); {', or '.join(settings)}") from None


def reason(error: BaseException) -> str:
    """What the device said, its first sentences only: the others are advice on allocators."""
    said = " ".join(str(error).split()).split("GPU ", 1)[0].removeprefix("CUDA out of memory. ").strip(" .")
    said = said.rsplit("DefaultCPUAllocator: ", 1)[-1]
    return said[:160] or type(error).__name__
