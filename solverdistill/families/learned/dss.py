"""DSS (Wang et al., "Differentiable Solver Search for Fast Diffusion Sampling", ICML 2025).

One evaluation per step, and every step uses the outputs of all steps so far::

    x' = x + (u' - u) sum_{j <= i} M_ij v_j                              flow: v = (x - denoised) / u, the velocity
    x' = rho x + (alpha' - rho alpha) sum_{j <= i} M_ij denoised_j       other paths, rho = sigma' / sigma

    M_ij = c_ij for j < i,   M_ii = 1 - sum_{j < i} c_ij,   step sizes = softmax(raw_dt)

The second form is z' = rho z + (1 - rho) sum_j M_ij denoised_j in EDM coordinates. Rows of M add up to 1 and nothing
else is asked of them. Time decreases here from noise to data; the paper's flow time increases, which turns the signs of
the velocity and of the step and leaves the coefficients as they are.

The published code integrates with the raw step sizes while it reports, and matches its teacher at, the softmaxed ones;
this family integrates with what it exports. Its coefficients belong to their path: read them on the one they were
searched on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, Params, State, Timeline, combine
from solverdistill.families.learned.learned_times import check_start, learned_grid, raw_steps, to_regular
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import Flow

SHORT_TAIL_STEPS = 6


class Searched(NamedTuple):
    """Learned noise levels and the completed matrix M. Shape of M: (steps, steps)."""

    timeline: Timeline
    matrix: Tensor


@dataclass(frozen=True, kw_only=True)
class DSS(Family):
    """Multistep solver with searched step sizes and a searched combination of all past outputs.

    Params: `raw_dt` (steps,), and `raw_coeffs` (steps, steps), of which only the strictly lower part acts, in rows cut
    short only its entry j = i - 1. They start at equal steps and zeros, which is Euler (DDIM) on the grid of equal
    steps: in the path's own unit, on the edm path in sigma^(1/7) (`learned_times` says why).

    Args:
        init_from: "uniform", or "grid" to start at the inner levels of `grid`.
        short_tail: Cut the last two rows to one past output; None does so at 6 steps and fewer, as the paper has it.
        time_floor: Raise noise levels below it to it. The published VP sampler runs from 0.999 to about -0.001 and
            stops at 1e-3, which shortens its last step; None for every other use.
    """

    init_from: str = "uniform"
    short_tail: bool | None = None
    time_floor: float | None = None
    name: ClassVar[str] = "dss"

    def __post_init__(self) -> None:
        check_start(self.name, self.init_from)
        if self.time_floor is not None and not self.time_floor < self.grid[0]:
            raise ValueError(f"time_floor of dss must lie below the grid's start {self.grid[0]}, not {self.time_floor}")

    @cached_property
    def acting(self) -> Tensor:
        """Which entries of `raw_coeffs` act. Shape: (steps, steps)."""
        lower = torch.ones(self.steps, self.steps, dtype=torch.bool).tril(-1)
        short = self.steps <= SHORT_TAIL_STEPS if self.short_tail is None else self.short_tail
        if short:
            lower[-2:] &= ~lower.tril(-2)[-2:]
        return lower

    def starts(self) -> tuple[dict[str, Any], ...]:
        return ({"init_from": "uniform"}, {"init_from": "grid"})

    def init(self, seed: int = 0) -> Params:
        raw = torch.zeros(self.steps, dtype=torch.float64)
        if self.init_from == "grid":
            raw = raw_steps(to_regular(self.path, float64(self.grid)))
        return {"raw_dt": raw, "raw_coeffs": torch.zeros(self.steps, self.steps, dtype=torch.float64)}

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ("raw_coeffs",)

    def prepare(self, params: Params) -> Searched:
        s = learned_grid(self.path, self.grid, params["raw_dt"])
        if self.time_floor is not None:
            s = s.clamp(min=self.time_floor)
        coefficients = params["raw_coeffs"] * self.acting
        return Searched(Timeline(self.path, s), coefficients + torch.diag(1 - coefficients.sum(1)))

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Searched) -> tuple[State, History]:
        timeline, row = values.timeline, values.matrix[i]
        denoised = denoise(x, timeline.level(i))
        velocity = isinstance(self.path, Flow)
        outputs = ((x - denoised) / timeline.clock[i] if velocity else denoised, *history)
        acting = [0, *(k for k in range(1, i + 1) if self.acting[i, i - k])]
        total = combine([outputs[k] for k in acting], [row[i - k] for k in acting])
        if velocity:
            return x + total * (timeline.clock[i + 1] - timeline.clock[i]), outputs
        ratio = timeline.sigma[i + 1] / timeline.sigma[i]
        return x * ratio + total * (timeline.alpha[i + 1] - ratio * timeline.alpha[i]), outputs


def published_params(step_sizes: Sequence[float] | Tensor, coefficients: Sequence[Sequence[float]] | Tensor) -> Params:
    """Params of a published table: its step sizes and its strictly lower coefficients c.

    Step sizes are printed with four decimals and add up to 0.9999 to 1.0002. The softmax divides them by their sum; a
    grid that ends at its start minus that sum keeps them as printed.

    Raises:
        ValueError: a step size is not positive, or the shapes do not match.
    """
    steps, c = float64(step_sizes), torch.as_tensor(coefficients, dtype=torch.float64)
    if c.shape != (len(steps), len(steps)):
        raise ValueError(f"a table of {len(steps)} step sizes needs as many rows and columns, not {tuple(c.shape)}")
    if not bool((steps > 0).all()):
        raise ValueError(f"step sizes of a published table must be positive, not {steps.tolist()}")
    return {"raw_dt": torch.log(steps), "raw_coeffs": c}
