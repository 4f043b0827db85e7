"""Whether a pipeline of diffusers teaches: its gradient, next to central differences in float64.

    python -m scripts.benchmarks.teaching [NAME ...]

`teaches(tiny)` gives one cell of docs/pipelines.md: the error, or the sentence with which the pipeline is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solverdistill.teachers import from_pipeline

from .tiny.making import Tiny

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Teaching:
    """What came of making a teacher of a pipeline.

    Args:
        state: Error of the derivative along a random direction of the state, relative to the larger of the two.
        level: The same for the noise level.
        rows: Rows of the network in one evaluation of one sample.
        batched: Whether several samples are one call.
        refusal: The sentence with which it is refused; the numbers are then nothing.
    """

    state: float = float("nan")
    level: float = float("nan")
    rows: float = float("nan")
    batched: bool = False
    refusal: str = ""

    @property
    def teaches(self) -> bool:
        """Whether it is a teacher with the right gradient in its states."""
        return not self.refusal and self.state < TOLERANCE

    @property
    def cell(self) -> str:
        """For a table."""
        return self.refusal or f"{self.state:.0e}"


def teaches(make: Callable[[], Tiny]) -> Teaching:
    """Make a teacher of a tiny pipeline in float64, and check its gradients.

    Args:
        make: Makes the pipeline; twice where its own code cannot work in float64, and is taken in float32.
    """
    try:
        single = teacher_of(make(), torch.float32)
    except ValueError as error:
        return Teaching(refusal=str(error))
    try:
        return check(teacher_of(make(), torch.float64), (1e-2, 1e-3, 1e-4))
    except (ValueError, RuntimeError):
        return check(single, (1e-1, 1e-2, 1e-3))


def check(teacher: Any, steps: Sequence[float]) -> Teaching:
    """Compare the gradients of a teacher with central differences, at the best of some steps.

    A step that is too long is off by its curvature, one that is too short by rounding: networks round inside of them,
    as their embeddings of time do.
    """
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    flow = teacher.prediction == "flow"

    def value(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.expand(len(x))
        denoised = teacher(x, 1 - sigma if flow else torch.sqrt(1 - sigma**2), sigma)
        weight = torch.randn(denoised.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        return (weight * denoised).sum()

    sigma = torch.tensor(0.6, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x.requires_grad_()
    sigma.requires_grad_()
    by_x, by_sigma = torch.autograd.grad(value(x, sigma), (x, sigma))
    along, of_sigma = float((by_x * direction).sum()), float(by_sigma)
    state, level = [], []
    with torch.no_grad():
        for step in steps:
            ends = [float(value(x + sign * step * direction, sigma)) for sign in (1, -1)]
            state.append(_error(along, (ends[0] - ends[1]) / (2 * step)))
            ends = [float(value(x, sigma + sign * step / 10)) for sign in (1, -1)]
            level.append(_error(of_sigma, (ends[0] - ends[1]) / (step / 5)))
    rows = next(iter(teacher.rows_seen.values()))
    return Teaching(min(state), min(level), rows, teacher.replay.rules is not None)


def teacher_of(tiny: Tiny, dtype: torch.dtype, **changed: Any) -> Any:
    """A teacher of a tiny pipeline, whose parts and embeddings have a dtype.

    Args:
        tiny: The pipeline.
        dtype: Of its parts and of what they are given.
        changed: Arguments of `from_pipeline` and of the pipeline's call that replace those of the tiny one.
    """
    for part in tiny.pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(dtype)
    arguments = {name: _cast(value, dtype) for name, value in tiny.arguments.items()}
    return from_pipeline(tiny.pipe, **{**arguments, **changed})


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return [_cast(item, dtype) for item in value] if isinstance(value, list) else value


def _error(one: float, two: float) -> float:
    return abs(one - two) / max(abs(one), abs(two), 1e-12)


def main(names: list[str]) -> None:
    """Print one line per pipeline."""
    import warnings

    from diffusers.utils import logging

    from .tiny.pipelines import TINY

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    for name in names or TINY:
        found = teaches(TINY[name])
        print(
            f"{name:45} {found.cell}" + ("" if found.refusal else f" level {found.level:.0e} rows {found.rows:g}"),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
