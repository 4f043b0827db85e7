"""Single-step DPM-Solver and DPM-Solver++: every step starts anew and looks at inner points of its own.

In the notation of `exponential`, a step from s with outputs m_0, m_1, m_2 at s and at the inner points, which lie at
the shares r_1, r_2 of the way in half_log_snr, is::

    x' = c x - S z (phi_1 m_0 + phi_1 (m_1 - m_0) / (2 r_1))                       order 2
    x' = c x - S z (phi_1 m_0 + phi_2 (m_2 - m_0) / r_2)                           order 3

The inner states are such steps themselves: x_1 of order 1, and x_2 with phi_2 (m_1 - m_0) / r_1' in place of the last
term, r_1' = r_1 / r_2. In the Taylor form the whole step has derivatives from divided differences: phi_2 (m_1 - m_0) /
r_1 at order 2 and phi_2 D_1 + phi_3 D_2 at order 3.

Reference: Lu et al., "DPM-Solver", NeurIPS 2022, Alg. 1-2; "DPM-Solver++", 2022, Alg. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import torch

from solverdistill.families.base import Evaluator, History, State, Timeline
from solverdistill.families.classical.exponential import ExponentialIntegrator, phi
from solverdistill.noise.levels import Level


@dataclass(frozen=True, kw_only=True)
class SingleStep(ExponentialIntegrator):
    """What single-step methods share: the update of a step from its outputs so far.

    Args:
        taylor: Derivatives from divided differences, in place of the published "dpmsolver" form.
    """

    taylor: bool = False

    def advance(self, x: State, outputs: Sequence[State], levels: Sequence[Level], inner: bool) -> State:
        """The state at the last of some levels, from the state at the first and the outputs at all but the last.

        Args:
            x: State at the beginning of the step.
            outputs: As many as levels but for the last, 1 to 3.
            levels: Of the outputs, in order, and of the state that is wanted.
            inner: Whether that state is an inner one of the step.
        """
        (start, end), count = (levels[0], levels[-1]), len(outputs)
        half_log_snr = torch.stack([torch.log(level.alpha) - torch.log(level.sigma) for level in levels])
        h = half_log_snr[-1] - half_log_snr[0]
        if self.predict_x0:
            c, S, z = end.sigma / start.sigma, end.alpha, -h
        else:
            c, S, z = end.alpha / start.alpha, end.sigma, h
        phi_1, phi_2, phi_3 = phi(z, 3)
        shares = (half_log_snr[1:count] - half_log_snr[0]) / h
        d = [(m - outputs[0]) / share for m, share in zip(outputs[1:], shares, strict=True)]
        total = outputs[0] * phi_1
        if count == 2:
            total = total + d[0] * (phi_2 if inner or self.taylor else phi_1 / 2)
        elif count == 3 and not self.taylor:
            total = total + d[1] * phi_2
        elif count == 3:
            gap = shares[1] - shares[0]
            D_1, D_2 = d[0] * shares[1] - d[1] * shares[0], (d[1] - d[0]) * 2
            total = total + (D_1 * phi_2 + D_2 * phi_3) / gap
        return x * c - total * (S * z)

    def output_at(self, x: State, level: Level, denoised: State) -> State:
        """What is extrapolated: the denoised image or the noise."""
        return denoised if self.predict_x0 else (x - denoised * level.alpha) / level.sigma


@dataclass(frozen=True, kw_only=True)
class DPMSingle(SingleStep):
    """`order` evaluations per step, the inner ones at even parts of it in half_log_snr; a singular step takes one."""

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Timeline) -> tuple[State, History]:
        denoised = self.denoised(i, x, denoise, values)
        if values.singular(i):
            return self.first_order(i, x, denoised, values), ()
        levels, outputs = self._levels(i, values), [self.output_at(x, values.level(i), denoised)]
        for k in range(1, self.order):
            state = self.advance(x, outputs, [*levels[:k], levels[k]], inner=True)
            outputs.append(self.output_at(state, levels[k], denoise(state, levels[k])))
        return self.advance(x, outputs, levels, inner=False), ()

    def _levels(self, i: int, values: Timeline) -> list[Level]:
        start, end = values.half_log_snr[i], values.half_log_snr[i + 1]
        inner = [start + (end - start) * (k / self.order) for k in range(1, self.order)]
        return [
            values.level(i),
            *(self.path.level(self.path.from_half_log_snr(value)) for value in inner),
            values.level(i + 1),
        ]


@dataclass(frozen=True, kw_only=True)
class DPMpp2S(DPMSingle):
    """DPM-Solver++(2S), two evaluations per step: k-diffusion's `dpmpp_2s_ancestral` without noise.

    So are `dpmpp_sde` and `seeds_2` at eta 0.
    """

    name: ClassVar[str] = "dpmpp_2s"


@dataclass(frozen=True, kw_only=True)
class DPMpp3S(DPMSingle):
    """DPM-Solver++(3S), three evaluations per step; `seeds_3` at eta 0."""

    order: int = 3
    name: ClassVar[str] = "dpmpp_3s"


@dataclass(frozen=True, kw_only=True)
class DPM2S(DPMSingle):
    """DPM-Solver-2, two evaluations per step; equals `dpm2` but on the flow path, where that one counts in time."""

    predict_x0: bool = False
    name: ClassVar[str] = "dpm_2s"


@dataclass(frozen=True, kw_only=True)
class DPM3S(DPMSingle):
    """DPM-Solver-3, three evaluations per step."""

    order: int = 3
    predict_x0: bool = False
    name: ClassVar[str] = "dpm_3s"


@dataclass(frozen=True, kw_only=True)
class DPMFast(SingleStep):
    """DPM-Solver "fast": the grid is that of the evaluations, and `order` of its intervals make one step.

    What remains at the end is made of lower orders, as published: of order 3, the last two steps have the orders 2 and
    1 where 3 divides the number of intervals, else one of order 1 or 2; of order 2, the last one has order 1 where the
    number is odd. A singular interval is a step of its own. The grid of the kind `dpm_fast` has even steps in
    half_log_snr, cut evenly, which is what k-diffusion's `dpm_fast` runs on. States within a step are read out too.
    """

    order: int = 3
    predict_x0: bool = False
    name: ClassVar[str] = "dpm_fast"

    def orders(self, values: Timeline) -> list[int]:
        """Orders of the steps, which sum to the intervals of the grid."""
        first, last = values.singular(0), self.steps > 1 and values.singular(self.steps - 1)
        return [*[1] * first, *fast_orders(self.steps - first - last, self.order), *[1] * last]

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Timeline) -> tuple[State, History]:
        ends = list(accumulate(self.orders(values), initial=0))
        begin, end = next((a, b) for a, b in pairwise(ends) if i < b)
        denoised = self.denoised(i, x, denoise, values)
        if values.singular(i):
            return self.first_order(i, x, denoised, values), ()
        start, outputs = (x, ()) if i == begin else (history[0], history[1:])
        outputs = (*outputs, self.output_at(x, values.level(i), denoised))
        levels = [values.level(k) for k in range(begin, i + 2)]
        is_last = i + 1 == end
        return self.advance(start, outputs, levels, inner=not is_last), () if is_last else (start, *outputs)


def fast_orders(evaluations: int, order: int) -> list[int]:
    """How a number of evaluations is spent on steps of an order, and lower ones at the end."""
    if order == 1 or evaluations < 2:
        return [1] * evaluations
    if order == 2:
        return [2] * (evaluations // 2) + [1] * (evaluations % 2)
    whole, rest = divmod(evaluations, 3)
    return [3] * (whole - 1) + [2, 1] if rest == 0 else [3] * whole + [rest]
