"""EPD: ensemble parallel directions (Zhu et al., "Distilling Parallel Gradients for Fast ODE Solvers", ICCV 2025).

Per step n, with h = u' - u, K learned points and their weights, all evaluated as one batch::

    g     = slope(y, u)                                      analytical in step 0 with `afs`
    tau_k = u'^r_k u^(1 - r_k)
    s_k   = (y_k - denoised(y_k; b_k tau_k)) / tau_k,         y_k = y + (tau_k - u) g
    y'    = y + h sum_k w_k a_k s_k

The time scale b enters only the noise level told to the network. With one point, no scales and r = 1/2 this is the
midpoint rule in log u with the whole weight on the middle slope, which is DPM-Solver-2 at r = 1/2.

Two things here are not of the paper. Params drawn at random are no solver: with scales that do not average to 1, a long
step misses even a constant denoised image. `init_from="quadrature"` starts at scales of 1 and at the points and weights
of a Gauss rule. And `learn_times` learns the inner noise levels with the rest. docs/fits.md has what both bring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import History, Params, State, Timeline, combine
from solverdistill.families.classical.interpolation import uniform_adams_bashforth
from solverdistill.families.learned.learned_times import learned_grid, raw_steps, to_regular
from solverdistill.families.learned.quadrature import exponential_gauss
from solverdistill.families.ode import OdeFamily, Slope
from solverdistill.noise.levels import float64
from solverdistill.support.type_checks import check_range

STARTS = ("drawn", "quadrature")
MOST_POINTS = 16  # no step gains by more, and rules of many points cannot be found in float64


class Points(NamedTuple):
    """Constrained values, each of shape (steps, points), and the grid they stand on."""

    r: Tensor
    weight: Tensor
    scale_dir: Tensor
    scale_time: Tensor
    timeline: Timeline


@dataclass(frozen=True, kw_only=True)
class EPD(OdeFamily):
    """Parallel-direction solver; (1 + points) evaluations and two stages per step, one less of each with `afs`.

    Params, each of shape (steps, points): `r_params` (sigmoid), `weight_s` (softmax over the points),
    `scale_dir_params` and `scale_time_params` (1 - c + 2 c sigmoid(p / 2)). With `learn_times` also `raw_dt` (steps,),
    added to the raw step sizes of the grid before the softmax of `learned_times`.

    Args:
        points: K, number of parallel evaluations per step.
        scale_dir: Range c of the direction scale a; 0 switches it off (the param stays, without effect).
        scale_time: Range c of the time scale b; 0 switches it off.
        fcn: Force a = 1 in the last step.
        init_from: "drawn": all from N(0, 1), the paper's; "quadrature": points and weights of `quadrature`, scales 1.
        learn_times: Learn the inner noise levels of the grid too; the paper keeps them.
    """

    points: int = 2
    scale_dir: float = 0.05
    scale_time: float = 0.05
    fcn: bool = False
    init_from: str = "drawn"
    learn_times: bool = False
    name: ClassVar[str] = "epd"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(f"points of {self.name}", self.points, least=1, most=MOST_POINTS)
        if self.init_from not in STARTS:
            raise ValueError(f"init_from of {self.name} is {self.init_from!r}; known: {', '.join(STARTS)}")
        if bool(self.timeline.clock[-1] <= 0):
            raise ValueError(f"{self.name} divides by its learned noise levels: the grid must end above 0")

    def starts(self) -> tuple[dict[str, Any], ...]:
        """The quadrature alone: of params that are drawn, the error before training says little."""
        return ({"init_from": "quadrature"},)

    def init(self, seed: int = 0) -> Params:
        generator = torch.Generator().manual_seed(seed)
        names = ("r_params", "scale_dir_params", "scale_time_params", "weight_s")
        shape = (self.steps, self.points)
        params = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name in names}
        if self.init_from == "quadrature":
            params = {name: torch.zeros_like(value) for name, value in params.items()} | self._quadrature()
        if self.learn_times:
            params["raw_dt"] = torch.zeros(self.steps, dtype=torch.float64)
        return params

    def _quadrature(self) -> Params:
        """Points and weights of the rule of every step, w_k in proportion to q_k tau_k."""
        lengths = self.timeline.clock.log().diff().neg().tolist()
        rules = [exponential_gauss(self.points, length) for length in lengths]
        nodes = torch.stack([rule.nodes for rule in rules])
        weights = torch.stack([rule.weights for rule in rules])
        return {"r_params": torch.logit(nodes), "weight_s": weights.log() - nodes * float64(lengths)[:, None]}

    def prepare(self, params: Params) -> Points:
        scale_dir = 1 - self.scale_dir + 2 * self.scale_dir * torch.sigmoid(params["scale_dir_params"] / 2)
        scale_time = 1 - self.scale_time + 2 * self.scale_time * torch.sigmoid(params["scale_time_params"] / 2)
        if self.fcn:
            last = torch.arange(self.steps) == self.steps - 1
            scale_dir = torch.where(last[:, None], torch.ones_like(scale_dir), scale_dir)
        weight = torch.softmax(params["weight_s"], dim=-1)
        return Points(torch.sigmoid(params["r_params"]), weight, scale_dir, scale_time, self._grid(params))

    def _grid(self, params: Params) -> Timeline:
        """The fixed grid, or the learned one."""
        if not self.learn_times:
            return self.timeline
        raw = raw_steps(to_regular(self.path, float64(self.grid)))
        return Timeline(self.path, learned_grid(self.path, self.grid, raw + params["raw_dt"]))

    def update(self, i: int, y: State, history: History, slope: Slope, values: Points) -> tuple[State, History]:
        u, u_next = values.timeline.clock[i], values.timeline.clock[i + 1]
        g = self.first_slope(i, y, u, slope)
        direction, history = self.predictor(g, history)
        tau = u_next ** values.r[i] * u ** (1 - values.r[i])
        told = [self.path.straight(values.scale_time[i, k] * tau[k]) for k in range(self.points)]
        slopes = [slope(y + direction * (tau[k] - u), tau[k], told[k]) for k in range(self.points)]
        return y + combine(slopes, values.weight[i] * values.scale_dir[i]) * (u_next - u), history

    def predictor(self, g: State, history: History) -> tuple[State, History]:
        """Direction that leads to the intermediate points, and the history for the next step."""
        return g, ()


@dataclass(frozen=True, kw_only=True)
class EPDiPNDM(EPD):
    """EPD as a plug-in on iPNDM: the direction to the points is the Adams-Bashforth combination of g and earlier g's.

    The coefficients are those of uniform steps, as in the paper, although the steps are not.

    Args:
        max_order: Largest order, 1 to 4; 1 is plain EPD.
    """

    max_order: int = 3
    name: ClassVar[str] = "epd_ipndm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_order <= 4:
            raise ValueError(f"max_order of {self.name} must be 1 to 4, not {self.max_order}")

    def predictor(self, g: State, history: History) -> tuple[State, History]:
        slopes = (g, *history)[: self.max_order]
        return combine(slopes, uniform_adams_bashforth(len(slopes))), slopes[: self.max_order - 1]
