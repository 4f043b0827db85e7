"""DyWeight (Zhao et al., "DyWeight: Dynamic Gradient Weighting for Few-Step Diffusion Sampling", 2026).

One evaluation per step; free weights on the newest slopes, and a factor b on the level told to the network. With the
grid's clock values u_i and the clock v_i that the state is taken to have reached, v_0 = u_0::

    g_i     = (y_i - denoised(y_i; |b_i v_i|)) / v_i                analytical in step 0 with `afs`
    y_{i+1} = y_i + (u_{i+1} - v_i) sum_j w_ij g_j
    v_{i+1} = v_i + (u_{i+1} - v_i) sum_j w_ij                      u_{i+1} where the weights add up to 1

so weights that do not add up to 1 move the noise levels as well, and the grid is learned through them. The last v is
not used: the state after the last step counts as one at the end of the grid. v can cross 0, hence ``|.|``.

On the edm path this is the paper's pixel and latent method. Its FLUX variant differs in what a shifted level does to
the slope: there the network's own output enters (`keep_output`), here the denoised image at the shifted level, which
multiplies an eps by b. The published code adds 1e-8 to the divisor v_i; this family does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, History, Params, State
from solverdistill.families.classical.interpolation import uniform_adams_bashforth
from solverdistill.families.learned.decoupled import Decoupled
from solverdistill.families.ode import OdeFamily, Slope
from solverdistill.noise.levels import Level
from solverdistill.noise.paths import Flow

STARTS = ("ipndm", "euler", "uniform")


class Weighted(NamedTuple):
    """Weights, the clock that the state has reached at every grid point, and the clock told at every step."""

    weights: Tensor
    reached: Tensor
    told: Tensor
    scales: Tensor


@dataclass(frozen=True, kw_only=True)
class DyWeight(OdeFamily):
    """Weighted slopes of the newest steps; one evaluation per step.

    Params: `hybrid_weights` (steps, steps), of which row i acts in its entries i - max_history + 1 to i, and `t_scale`
    (steps,), one entry less with `afs`. It starts as `ipndm` of that order with unscaled levels.

    Args:
        max_history: Number of slopes that a step uses, its own included; None is all.
        init_from: "ipndm" (its first four weights), "euler", or "uniform" (equal weights).
        learn_time_scale: Whether `t_scale` exists; otherwise every factor is 1.
        keep_output: Make the slope of the network's own output (eps, on flow the velocity) at the scaled level, as the
            paper's FLUX variant does.
    Reference: Zhao et al. 2026, arXiv 2603.11607.
    """

    max_history: int | None = 3
    init_from: str = "ipndm"
    learn_time_scale: bool = True
    keep_output: bool = False
    name: ClassVar[str] = "dyweight"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_history is not None and self.max_history < 1:
            raise ValueError(f"max_history of {self.name} must be at least 1, not {self.max_history}")
        if self.init_from not in STARTS:
            raise ValueError(f"init_from of {self.name} is {self.init_from!r}; known: {', '.join(STARTS)}")

    def slopes(self, i: int) -> int:
        """Number of slopes that step i uses."""
        return i + 1 if self.max_history is None else min(i + 1, self.max_history)

    @cached_property
    def acting(self) -> Tensor:
        """Which entries of `hybrid_weights` act. Shape: (steps, steps)."""
        band = torch.ones(self.steps, self.steps, dtype=torch.bool).tril()
        return band & ~band.tril(-self.slopes(self.steps))

    def init(self, seed: int = 0) -> Params:
        weights = torch.zeros(self.steps, self.steps, dtype=torch.float64)
        for i in range(self.steps):
            newest = self._initial_weights(self.slopes(i))
            weights[i, i + 1 - len(newest) : i + 1] = newest.flip(0)
        params = {"hybrid_weights": weights}
        if self.learn_time_scale:
            params["t_scale"] = torch.ones(self.steps - self.afs, dtype=torch.float64)
        return params

    def prepare(self, params: Params) -> Weighted:
        weights = params["hybrid_weights"] * self.acting
        grid = self.timeline.clock
        reached = [grid[0]]
        for i in range(self.steps - 1):
            reached.append(reached[i] + weights[i].sum() * (grid[i + 1] - reached[i]))
        clock = torch.stack(reached)
        factors = torch.ones_like(clock)
        if self.learn_time_scale:
            factors = torch.cat([factors[: int(self.afs)], params["t_scale"]])
        told = (factors * clock).abs()
        told = told.clamp(max=1.0) if isinstance(self.path, Flow) else told  # there is nothing above pure noise
        ends = self.timeline.scale[:1], self.timeline.scale[-1:]
        inner = self.path.scale(self.path.from_clock(clock[1:].abs()))
        return Weighted(weights, clock, told, torch.cat([ends[0], inner, ends[1]]))

    def levels(self, values: Weighted) -> list[Level]:
        inner = [self.path.level(self.path.from_clock(u.abs())) for u in values.reached[1:]]
        return [self.timeline.level(0), *inner, self.timeline.level(self.steps)]

    def scales(self, values: Weighted) -> Tensor:
        return values.scales

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Weighted) -> tuple[State, History]:
        evaluate = Decoupled(denoise, self.path) if self.keep_output else denoise
        return super().step(i, x, history, evaluate, values)

    def update(self, i: int, y: State, history: History, slope: Slope, values: Weighted) -> tuple[State, History]:
        u = values.reached[i]
        g = self.first_slope(i, y, u, slope, self.path.straight(values.told[i]))
        slopes = (g, *history)[: self.slopes(i)]
        total: Any = 0
        for k, past in enumerate(slopes):
            total = total + past * values.weights[i, i - k]
        return y + total * (self.timeline.clock[i + 1] - u), slopes[: self.slopes(self.steps) - 1]

    def _initial_weights(self, slopes: int) -> Tensor:
        """Weights of a step's slopes, newest first."""
        if self.init_from == "euler":
            return torch.ones(1, dtype=torch.float64)
        if self.init_from == "uniform":
            return torch.full((slopes,), 1 / slopes, dtype=torch.float64)
        return torch.as_tensor(uniform_adams_bashforth(min(slopes, 4)), dtype=torch.float64)
