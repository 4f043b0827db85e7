"""S4S: solving for a diffusion model solver (Frankel et al., "S4S: Solving for a Diffusion Model Solver", ICML 2025).

A linear multistep method whose exponential-integrator coefficients stay analytic while the weights of its history are
free numbers of each step::

    x' = rho x + (alpha' - rho alpha) sum_{k < K} phi_ik denoised(x_{i-k}; s_{i-k} + xi_{i-k}),    rho = sigma' / sigma

alpha' - rho alpha is -alpha' (e^-h - 1) with h the step in half_log_snr. The Alt variant learns the times s and, apart
from them, the offsets xi of the times told to the network.

Established, from the method as other papers restate it: the step, weights without any consistency constraint, a history
of K outputs, weights that start at those of an existing solver on any grid, and times and offsets learned in turns with
the weights or jointly. Ours: data prediction; the softmax of step sizes; offsets measured in the variable r of
`learned_times`, with the network's own output kept at the told level (`decoupled`), as GAS and LD3 do; and that the Alt
variant's params train jointly. The single-step and the predictor-corrector form are not here: the only published code
of the latter is a re-implementation that is inconsistent where it starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, Params, State, Timeline, combine
from solverdistill.families.classical.dpmpp import DPMpp
from solverdistill.families.learned.decoupled import Decoupled
from solverdistill.families.learned.learned_times import from_regular, learned_grid, raw_steps, to_regular
from solverdistill.noise.levels import float64

LARGEST_DPMPP = 3


class Weighted(NamedTuple):
    """Noise levels, with those told to the network, and the weights. Shape of phi: (steps, order), newest first."""

    timeline: Timeline
    phi: Tensor


@dataclass(frozen=True, kw_only=True)
class S4S(Family):
    """Linear multistep method with learned weights on a fixed grid; one evaluation per step.

    Params: `phi` (steps, order), the weight of the k-th newest output; k beyond the outputs there are does not act.
    They start at the weights of DPM-Solver++ of this order (3 at most) on the grid, which the solver then equals.

    Args:
        order: K, the number of outputs that a step combines.
        lower_order_final: Start at the DPM-Solver++ that lowers its order towards the last step.
    """

    order: int = 3
    lower_order_final: bool = True
    name: ClassVar[str] = "s4s"

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ValueError(f"order of {self.name} must be at least 1, not {self.order}")

    @cached_property
    def _initial(self) -> Tensor:
        order, phi = min(self.order, LARGEST_DPMPP), torch.zeros(self.steps, self.order, dtype=torch.float64)
        solver = DPMpp(grid=self.grid, path=self.path, order=order, lower_order_final=self.lower_order_final)
        for i in range(self.steps):
            program = solver.step_program(i)
            weights = torch.cat([program.B[-1], program.A[-1, 1:]])
            phi[i, : len(weights)] = weights / _gain(i, self.timeline)
        return phi

    def init(self, seed: int = 0) -> Params:
        return {"phi": self._initial.clone()}

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ("phi",)

    def prepare(self, params: Params) -> Weighted:
        return Weighted(self.timeline, params["phi"])

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Weighted) -> tuple[State, History]:
        timeline = values.timeline
        outputs = (self.denoised(i, x, denoise, timeline), *history)
        total = combine(outputs, values.phi[i, : len(outputs)])
        ratio = timeline.sigma[i + 1] / timeline.sigma[i]
        return x * ratio + total * _gain(i, timeline), outputs[: self.order - 1]

    def denoised(self, i: int, x: State, denoise: Evaluator, timeline: Timeline) -> State:
        """Denoised image of the state at grid point i."""
        return denoise(x, timeline.level(i))


@dataclass(frozen=True, kw_only=True)
class S4SAlt(S4S):
    """S4S with learned times, and learned offsets of the times told to the network.

    Params: `phi` as in S4S; `raw_dt` (steps,), softmaxed to steps, starting at those of the grid; `xi` (steps,), added
    to the told time, starting at 0. Steps and offsets are measured in the path's own unit, on the edm path in
    sigma^(1/7).
    """

    name: ClassVar[str] = "s4s_alt"

    def init(self, seed: int = 0) -> Params:
        raw = raw_steps(to_regular(self.path, float64(self.grid)))
        return {**super().init(seed), "raw_dt": raw, "xi": torch.zeros_like(raw)}

    def prepare(self, params: Params) -> Weighted:
        s = learned_grid(self.path, self.grid, params["raw_dt"])
        told = from_regular(self.path, to_regular(self.path, s[:-1]) + params["xi"])
        return Weighted(Timeline(self.path, s, told), params["phi"])

    def denoised(self, i: int, x: State, denoise: Evaluator, timeline: Timeline) -> State:
        return Decoupled(denoise, self.path)(x, timeline.level(i), timeline.told(i))


def _gain(i: int, timeline: Timeline) -> Tensor:
    """alpha' - rho alpha, the analytic coefficient of the combined outputs; finite at alpha = 0 and at sigma' = 0."""
    return timeline.alpha[i + 1] - timeline.sigma[i + 1] / timeline.sigma[i] * timeline.alpha[i]
