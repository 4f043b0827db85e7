"""Bespoke solvers: a Runge-Kutta step on a learned scale-time transformation of the path (Shaul et al., ICLR 2024).

In the paper's time t, which runs from 0 (noise) to 1 (data) and is mapped linearly onto the grid's range of the path's
own unit (which decreases: t = 0 is the first grid value, t = 1 the last), the ODE is x' = v_t(x) with

    v_t(x) = alpha_dot denoised + sigma_dot eps,      eps = (x - alpha denoised) / sigma.

Along a learned clock t_r and scale s_r, 0 <= r <= 1, the state s_r x(t_r) moves with

    (s_dot_r / s_r) x + t_dot_r s_r v_{t_r}(x / s_r);

a solver takes n steps of h = 1/n on it and divides by the scale again. Values and derivatives at the points of r are
independent numbers. RK1 has them at the ends of the steps, RK2 (the midpoint rule) at their middles as well.

On the edm path neither sigma nor log sigma is a variable in which an Euler step from sigma = 80 is stable. There the
transformation acts on the equivalent flow path, state x / (1 + sigma) and unit sigma / (1 + sigma), and the states are
turned back; evenly spaced times then are 80, 3.8, 1.4, 0.66, 0.25, 0.002 in sigma for five steps.

The scale never changes where the network is evaluated, and many params give the same solver: of the 4n - 1 numbers of
RK1 3n - 1 count (free times and any two coefficients in every step), of the 8n - 1 of RK2 7n - 1 (the scales at the
middles are redundant). The weights of the RMSE bound do depend on them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, Params, State
from solverdistill.noise.levels import Level, float64
from solverdistill.noise.paths import EDM, Flow, Path


class Transformation(NamedTuple):
    """Constrained values at the m + 1 points of r, and the path at the m points where the network is evaluated.

    Args:
        time: t, from 0 to 1. Shape: (m + 1,).
        time_dot: Derivative of t, not negative. Shape: (m,).
        scale: s, from 1, positive. Shape: (m + 1,).
        scale_dot: Derivative of s. Shape: (m,).
        level: (alpha, sigma) at `time`, in the coordinates that are transformed. Shapes: (m,).
        rate: Derivatives of alpha and sigma in t. Shapes: (m,).
    """

    time: Tensor
    time_dot: Tensor
    scale: Tensor
    scale_dot: Tensor
    level: Level
    rate: Level

    def velocity(self, k: int, x: State, denoise: Evaluator) -> State:
        """v_t(x) at point k: one evaluation of the network."""
        alpha, sigma = self.level.alpha[k], self.level.sigma[k]
        denoised = denoise(x, Level(alpha, sigma))
        eps = (x - denoised * alpha) / sigma
        return denoised * self.rate.alpha[k] + eps * self.rate.sigma[k]


@dataclass(frozen=True, kw_only=True)
class Bespoke(Family):
    """What both solvers share. The grid gives its ends and the number n of steps; the times between are learned.

    Params, each of shape (m,), m = n times the evaluations per step: `w_time` (t = cumsum|w| / sum|w|), `w_time_dot`
    (absolute value), `theta_scale` (s = 1, then exp) and `scale_dot` (as it is). Their initial values 1, 1, 0, 0 are
    the untransformed Runge-Kutta method on evenly spaced times.

    Reference: Shaul et al., "Bespoke Solvers for Generative Flow Models", ICLR 2024. arXiv 2310.19075
    """

    points: ClassVar[int]  # evaluations per step

    @abstractmethod
    def growth(self, values: Transformation, lipschitz: float) -> Tensor:
        """Lipschitz constants of the steps, where `lipschitz` is one of v. Shape: (n,)."""

    @abstractmethod
    def advance(self, i: int, x: State, denoise: Evaluator, values: Transformation) -> State:
        """Step i on a state in the coordinates that are transformed."""

    def init(self, seed: int = 0) -> Params:
        one = torch.ones(self.points * self.steps, dtype=torch.float64)
        names = ("w_time", "w_time_dot", "theta_scale", "scale_dot")
        return {name: one * value for name, value in zip(names, (1.0, 1.0, 0.0, 0.0), strict=True)}

    def prepare(self, params: Params) -> Transformation:
        weight = params["w_time"].abs().cumsum(0)
        end = weight.new_ones(1)
        # The ends are constants: no gradient may reach alpha or sigma where the path's derivatives are infinite.
        time = torch.cat([weight.new_zeros(1), weight[:-1] / weight[-1], end])
        s, length = self._unit(time[:-1]), self._ends[1] - self._ends[0]
        rate = Level(*(length * derivative for derivative in self._inner.derivatives(s)))
        scale = torch.cat([end, params["theta_scale"].exp()])
        level = self._inner.level(s)
        return Transformation(time, params["w_time_dot"].abs(), scale, params["scale_dot"], level, rate)

    def transformation(self, params: Params | None = None) -> Transformation:
        """Checked and constrained params."""
        return self._prepare(params)

    def step(
        self, i: int, x: State, history: History, denoise: Evaluator, values: Transformation
    ) -> tuple[State, History]:
        factor = self.factors(values)
        return self.advance(i, x / factor[i], denoise, values) * factor[i + 1], ()

    def levels(self, values: Transformation) -> list[Level]:
        factors = self.factors(values)[1:-1]
        inner = (part[self.points :: self.points] * factors for part in values.level)
        learned = [Level(alpha, sigma) for alpha, sigma in torch.stack([*inner], dim=1)]
        return [self.timeline.level(0), *learned, self.timeline.level(self.steps)]

    def factors(self, values: Transformation) -> Tensor:
        """State divided by the state that is transformed, at every grid point: 1 + sigma on edm, else 1."""
        if not isinstance(self.path, EDM):
            return torch.ones(self.steps + 1, dtype=torch.float64)
        return 1 / (1 - self._unit(values.time[:: self.points]))

    @cached_property
    def _inner(self) -> Path:
        return Flow() if isinstance(self.path, EDM) else self.path

    @cached_property
    def _ends(self) -> Tensor:
        ends = float64([self.grid[0], self.grid[-1]])
        return ends / (1 + ends) if isinstance(self.path, EDM) else ends

    def _unit(self, time: Tensor) -> Tensor:
        """The own unit of the path that is transformed at t."""
        return self._ends[0] + time * (self._ends[1] - self._ends[0])


@dataclass(frozen=True, kw_only=True)
class BespokeRK1(Bespoke):
    """Euler steps on the transformed path, one evaluation each.

    x' = ((s + h s_dot) / s') x + (h t_dot s / s') v_t(x). Reduces to DDIM on flow and edm, to Euler in the path's own
    unit elsewhere, at the initial params.
    """

    name: ClassVar[str] = "bespoke_rk1"
    points: ClassVar[int] = 1

    def advance(self, i: int, x: State, denoise: Evaluator, values: Transformation) -> State:
        h, s, s_next = 1 / self.steps, values.scale[i], values.scale[i + 1]
        velocity = values.velocity(i, x, denoise)
        return x * ((s + h * values.scale_dot[i]) / s_next) + velocity * (h * values.time_dot[i] * s / s_next)

    def growth(self, values: Transformation, lipschitz: float) -> Tensor:
        rate = _rates(values, lipschitz)
        return values.scale[:-1] / values.scale[1:] * (1 + rate / self.steps)


@dataclass(frozen=True, kw_only=True)
class BespokeRK2(Bespoke):
    """Midpoint steps on the transformed path, two evaluations each; m denotes the middle of a step.

    z  = (s + h/2 s_dot) x + h/2 s t_dot v_t(x)
    x' = (s / s') x + (h / s') ((s_dot_m / s_m) z + t_dot_m s_m v_{t_m}(z / s_m))

    Reduces to the midpoint rule in the path's own unit (in sigma / (1 + sigma) on edm) at the initial params.
    """

    name: ClassVar[str] = "bespoke_rk2"
    points: ClassVar[int] = 2

    def advance(self, i: int, x: State, denoise: Evaluator, values: Transformation) -> State:
        h, k, m = 1 / self.steps, 2 * i, 2 * i + 1
        s, s_m, s_next = values.scale[k], values.scale[m], values.scale[k + 2]
        velocity = values.velocity(k, x, denoise)
        z = x * (s + h / 2 * values.scale_dot[k]) + velocity * (h / 2 * s * values.time_dot[k])
        slope = z * (values.scale_dot[m] / s_m) + values.velocity(m, z / s_m, denoise) * (values.time_dot[m] * s_m)
        return x * (s / s_next) + slope * (h / s_next)

    def growth(self, values: Transformation, lipschitz: float) -> Tensor:
        rate, h = _rates(values, lipschitz), 1 / self.steps
        return values.scale[:-2:2] / values.scale[2::2] * (1 + h * rate[1::2] * (1 + h / 2 * rate[::2]))


def _rates(values: Transformation, lipschitz: float) -> Tensor:
    """Lipschitz constants |s_dot| / s + t_dot L of the transformed velocity. Shape: (m,)."""
    return values.scale_dot.abs() / values.scale[:-1] + values.time_dot * lipschitz
