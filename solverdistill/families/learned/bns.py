"""BNS: bespoke non-stationary solvers (Shaul et al., "Bespoke Non-Stationary Solvers", ICML 2024).

Every state is a free combination of the first one and of all velocities so far, at learned times::

    x_{i+1} = a_i x_0 + sum_{j <= i} b_ij u_j(x_j)

Every linear multistep or Runge-Kutta method, exponential or not, on any schedule, can be written so. The velocity of a
schedule alpha(r), sigma(r) is u = (sigma_dot / sigma) x + (alpha_dot - alpha sigma_dot / sigma) denoised; here its
clock is the *progress*, which rises from 0 at the noisy end of the grid to 1 at the clean one, as in the paper.

Working schedule. alpha and sigma are the path's own, but on the edm path cos and sin of an angle: EDM states have a
standard deviation of up to 80 and a velocity that is nearly their noise, with which a and b would be badly scaled,
while on the circle both are of unit size and finite down to sigma = 0. `sigma_0` multiplies sigma of the schedule (the
paper's preconditioning for strong guidance, a source of that standard deviation); times then belong to the new
schedule, whose ends have the signal-to-noise ratios of the grid's. States that leave a step are always in the path's
own scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, Params, State, Timeline, combine
from solverdistill.families.learned.learned_times import check_start, raw_steps
from solverdistill.noise.levels import Level, float64
from solverdistill.noise.paths import EDM, Cosine, Path

SOLVERS = ("euler", "midpoint")


class Schedule:
    """The working schedule: levels (alpha(r), sigma_0 sigma(r)) over r, which decreases from noise to data."""

    def __init__(self, path: Path, sigma_0: float) -> None:
        self.path, self.sigma_0 = path, sigma_0
        self.base: Path = Cosine() if isinstance(path, EDM) else path
        self.same = self.base is path and sigma_0 == 1

    def level(self, r: Tensor) -> Level:
        """Level of a working state at r."""
        alpha, sigma = self.base.level(r)
        return Level(alpha, self.sigma_0 * sigma)

    def find(self, level: Level) -> Tensor:
        """r at which working states have the signal-to-noise ratio of a level in any scale."""
        return self.base.from_clock(self.base.clock_of(Level(level.alpha * self.sigma_0, level.sigma)))

    def own(self, r: Tensor) -> Tensor:
        """Noise level in the path's own unit with the signal-to-noise ratio at r."""
        return r if self.same else self.path.from_clock(self.path.clock_of(self.level(r)))

    def velocity(self, r: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of x and of denoised in the velocity per unit of progress, r having to cover `span`."""
        (alpha, sigma), derivatives = self.level(r), self.base.derivatives(r)
        rate = self.sigma_0 * derivatives.sigma / sigma
        return span * rate, span * (derivatives.alpha - rate * alpha)


class Canonical(NamedTuple):
    """What a step reads: the path's noise levels, the working levels and scales, velocities, coefficients."""

    timeline: Timeline
    working: Level
    scale: Tensor
    of_state: Tensor
    of_denoised: Tensor
    a: Tensor
    b: Tensor


@dataclass(frozen=True, kw_only=True)
class BNS(Family):
    """Non-stationary solver; one evaluation per step.

    Params: `raw_dt` (steps,), softmaxed to steps of progress; `a` (steps,); `b` (steps, steps), of which the lower
    triangle with its diagonal acts. The times are monotone by construction, which the paper asks of them.

    Args:
        init_solver: "euler": a = 1, b_ij = step j; or "midpoint", two steps and evaluations per midpoint step.
        init_from: "uniform", or "grid" to start at the inner levels of `grid` (of every second one for midpoint).
        sigma_0: Standard deviation of the source that the schedule is changed to.
    """

    init_solver: str = "euler"
    init_from: str = "uniform"
    sigma_0: float = 1.0
    name: ClassVar[str] = "bns"

    def __post_init__(self) -> None:
        check_start(self.name, self.init_from)
        if self.init_solver not in SOLVERS:
            raise ValueError(f"init_solver of bns is {self.init_solver!r}; known: {', '.join(SOLVERS)}")
        if self.init_solver == "midpoint" and self.steps % 2:
            raise ValueError(f"init_solver=midpoint of bns spends two steps at a time; {self.steps} steps are odd")
        if not self.sigma_0 > 0:
            raise ValueError(f"sigma_0 of bns must be positive, not {self.sigma_0}")

    @cached_property
    def schedule(self) -> Schedule:
        """The working schedule."""
        return Schedule(self.path, self.sigma_0)

    def _find(self, s: Tensor) -> Tensor:
        return s if self.schedule.same else self.schedule.find(self.path.level(s))

    def starts(self) -> tuple[dict[str, Any], ...]:
        return ({"init_from": "uniform"}, {"init_from": "grid"})

    def init(self, seed: int = 0) -> Params:
        progress = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        if self.init_from == "grid":
            r = self._find(float64(self.grid))
            progress = (r - r[0]) / (r[-1] - r[0])
        lower = torch.ones(self.steps, self.steps, dtype=torch.float64).tril()
        if self.init_solver == "euler":
            b = lower * (progress[1:] - progress[:-1])
        else:
            outer = progress[::2]
            h = outer[1:] - outer[:-1]
            progress = torch.cat([torch.stack([outer[:-1], outer[:-1] + h / 2], dim=1).flatten(), outer[-1:]])
            b = lower * torch.stack([torch.zeros_like(h), h], dim=1).flatten()
            b[::2, ::2] = torch.diag(h / 2)
        return {"raw_dt": raw_steps(progress), "a": torch.ones(self.steps, dtype=torch.float64), "b": b}

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ("a", "b")

    def prepare(self, params: Params) -> Canonical:
        ends = float64([self.grid[0], self.grid[-1]])
        start, end = self._find(ends)
        inner = start + (end - start) * torch.softmax(params["raw_dt"], dim=0).cumsum(0)[:-1]
        r = torch.cat([start[None], inner, end[None]])
        timeline = Timeline(self.path, torch.cat([ends[:1], self.schedule.own(inner), ends[1:]]))
        working = self.schedule.level(r)
        scale = torch.hypot(timeline.alpha, timeline.sigma) / working.hypot()
        return Canonical(
            timeline, working, scale, *self.schedule.velocity(r[:-1], end - start), params["a"], params["b"]
        )

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Canonical) -> tuple[State, History]:
        x = x / values.scale[i]
        denoised = denoise(x, Level(values.working.alpha[i], values.working.sigma[i]))
        first = history[-1] if history else x
        velocities = (x * values.of_state[i] + denoised * values.of_denoised[i], *history[:-1])
        total = combine((first, *velocities), torch.cat([values.a[i : i + 1], values.b[i, : i + 1].flip(0)]))
        return total * values.scale[i + 1], (*velocities, first)
