"""Solvers of the diffusion SDE at noise 0, where they solve the probability-flow ODE: ER-SDE and SA-Solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, History, State, Timeline, combine
from solverdistill.families.classical.exponential import ExponentialIntegrator


@dataclass(frozen=True, kw_only=True)
class ERSDE(ExponentialIntegrator):
    """One evaluation per step; the denoised image is extrapolated as a polynomial in sigma / alpha.

    With y = x / alpha, s = sigma / alpha, and a step from a to b:

    y' = (b/a) y + (1 - b/a) D + (b - a + b I_0) e + ((b - a)^2 / 2 + b I_1) 2 (e - e_old) / (a - a_oldest)

    with e = (D - D_old) / (a - a_old), I_0 = int_b^a du / u and I_1 = int_b^a (u - a) / u du. The last step lowers no
    order of its own; a singular step is of first order.

    Args:
        order: Largest order, 1 to 3.
        sum_points: Left Riemann sums of that many points in place of the integrals, as published: 100 there, 200 in
            ComfyUI. None integrates exactly.
    Reference: Cui et al., "Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models", 2023,
    with the noise scale phi(s) = s, at which there is no noise.
    """

    order: int = 3
    sum_points: int | None = None
    name: ClassVar[str] = "er_sde"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.predict_x0:
            raise ValueError(f"{self.name} extrapolates the denoised image; leave predict_x0 true")

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Timeline) -> tuple[State, History]:
        denoised = self.denoised(i, x, denoise, values)
        state = self.first_order(i, x, denoised, values)
        if values.singular(i):
            return state, () if bool(values.alpha[i] == 0) else (denoised,)
        outputs = (denoised, *history)[: self.order]
        s = (values.sigma / values.alpha)[i + 1 - len(outputs) : i + 2].flip(0)  # b, a, and the levels before
        b, a = s[0], s[1]
        zeroth, first = self._integrals(a, b)
        e = [
            (new - old) / (s[k + 1] - s[k + 2]) for k, (new, old) in enumerate(zip(outputs, outputs[1:], strict=False))
        ]
        if e:
            state = state + e[0] * (values.alpha[i + 1] * (b - a + b * zeroth))
        if len(e) == 2:
            curve = (e[0] - e[1]) * (2 / (a - s[3]))
            state = state + curve * (values.alpha[i + 1] * ((b - a) ** 2 / 2 + b * first))
        return state, outputs[: self.order - 1]

    def _integrals(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if self.sum_points is None:
            whole = torch.log(a / b)
            return whole, a - b - a * whole
        width = (a - b) / self.sum_points
        u = b + width * torch.arange(self.sum_points, dtype=torch.float64)
        return (width / u).sum(), (width * (u - a) / u).sum()


@dataclass(frozen=True, kw_only=True)
class SASolver(ExponentialIntegrator):
    """One evaluation per step, shared by a predictor and a corrector: exponential Adams methods in half_log_snr.

    x' = (sigma'/sigma) x + sum_j w_j D_j, the weights from exact integrals of the polynomial through the outputs. The
    predictor goes through the last `order` outputs, the corrector through the new one and the last `corrector_order` -
    1. The last step is a predictor of first order, and is not corrected. Before it, orders fall to what remains: of
    k steps that do not end at sigma = 0, to k and k + 1, as published; of k steps before one that does, to k, as in
    ComfyUI.

    Args:
        order: Largest order of the predictor, 1 to 3.
        corrector_order: Largest order of the corrector, up to 4; 0 corrects nothing.
        replace_order_2: Weights of order 2 as published for few steps: -h^2 / (2 gap) for the older output of the
            predictor, a gap in half_log_snr before the newer one, and h / 2 for the new one of the corrector.
    Reference: Xue et al., "SA-Solver", NeurIPS 2023, Alg. 1, with tau = 0, at which there is no noise.
    """

    order: int = 3
    corrector_order: int = 4
    replace_order_2: bool = False
    name: ClassVar[str] = "sa_solver"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.corrector_order <= 4:
            raise ValueError(f"corrector_order of {self.name} must be 0 to 4, not {self.corrector_order}")
        if not self.predict_x0:
            raise ValueError(f"{self.name} extrapolates the denoised image; leave predict_x0 true")

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Timeline) -> tuple[State, History]:
        ends = bool(values.sigma[self.steps] == 0)
        if not history:
            denoised = self.denoised(i, x, denoise, values)
            if values.singular(i):
                return self.first_order(i, x, denoised, values), ()
            history = (denoised,)
        if i == self.steps - 1 or values.singular(i):
            return self.first_order(i, x, history[0], values), ()
        left = self.steps - i - ends
        predictor = min(self.order, len(history), left)
        predicted = self._update(i, x, history[:predictor], values, new=False)
        new = self.denoised(i + 1, predicted, denoise, values)
        corrector = min(self.corrector_order, len(history) + 1, left if ends else left + 1)
        state = predicted if corrector < 1 else self._update(i, x, (new, *history[: corrector - 1]), values, new=True)
        return state, (new, *history)[: max(self.order, self.corrector_order - 1, 1)]

    def _update(self, i: int, x: State, outputs: History, values: Timeline, new: bool) -> State:
        """The state at the end of step i from outputs, newest first; `new` is the one at its end."""
        end, count = i + 1, len(outputs)
        newest = end if new else i
        points = values.half_log_snr[newest + 1 - count : newest + 1].flip(0)
        h = values.half_log_snr[end] - values.half_log_snr[i]
        weights = self._weights(values.half_log_snr[end] - points, h)
        if self.replace_order_2 and count == 2:
            gap = points[0] - points[1]
            other = h / 2 if new else -(h**2) / (2 * gap)
            total = -torch.expm1(-h)
            weights = torch.stack([other, total - other] if new else [total - other, other])
        return x * (values.sigma[end] / values.sigma[i]) + combine(outputs, weights * values.alpha[end])

    @staticmethod
    def _weights(distances: Tensor, h: Tensor) -> Tensor:
        """Weights with sum_j w_j u_j^k = int_0^h u^k e^-u du for distances u_j from the end of the step."""
        moments = [-torch.expm1(-h)]
        for k in range(1, len(distances)):
            moments.append(k * moments[-1] - h**k * torch.exp(-h))
        powers = torch.stack([distances**k for k in range(len(distances))])
        return torch.linalg.solve(powers, torch.stack(moments))
