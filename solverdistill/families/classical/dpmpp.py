"""DPM-Solver++, the multistep form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from solverdistill.families.base import Evaluator, History, State, Timeline
from solverdistill.families.classical.exponential import ExponentialIntegrator, phi


@dataclass(frozen=True, kw_only=True)
class DPMpp(ExponentialIntegrator):
    """One evaluation per step.

    x' = c x - S z (phi_1 m + phi_1 d_0 / 2)                 order 2
    x' = c x - S z (phi_1 m + phi_2 D_1 + phi_3 D_2)         order 3

    with r_k = (lambda_{i-k} - lambda_{i-k-1}) / h, d_k = (m_{i-k} - m_{i-k-1}) / r_k, D_2 = (d_0 - d_1) / (r_0 + r_1)
    and D_1 = d_0 + r_0 D_2; m is the denoised image (c = sigma'/sigma, S = alpha', z = -h) or the noise
    (c = alpha'/alpha, S = sigma', z = h). D_2 is half the second derivative, as published: order 3 has
    mostly a smaller error than order 2, but the same order 2 in the limit of small steps, unlike UniPC's order 3.

    Reference: Lu et al., "DPM-Solver++", 2022, Alg. 2 (2M) and its third-order form.
    """

    name: ClassVar[str] = "dpmpp"

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Timeline) -> tuple[State, History]:
        denoised = self.denoised(i, x, denoise, values)
        if values.singular(i):
            return self.first_order(i, x, denoised, values), ()
        outputs = (self.output(i, x, denoised, values), *history)[: self.order]
        c, S, z = self.linear(i, values)
        total = self._total(i, outputs[: self.order_at(i, len(outputs))], z, values)
        return x * c - total * (S * z), outputs[: self.order - 1]

    def _total(self, i: int, outputs: History, z: Tensor, values: Timeline) -> State:
        phi_1, phi_2, phi_3 = phi(z, 3)
        if len(outputs) == 1:
            return outputs[0] * phi_1
        half_log_snr = values.half_log_snr[i + 1 - len(outputs) : i + 2].flip(0)
        gaps = half_log_snr[:-1] - half_log_snr[1:]
        r = gaps[1:] / gaps[0]
        d = [(new - old) / r[k] for k, (new, old) in enumerate(zip(outputs, outputs[1:], strict=False))]
        if len(outputs) == 2:
            return (outputs[0] + d[0] / 2) * phi_1
        D_2 = (d[0] - d[1]) / (r[0] + r[1])
        D_1 = d[0] + D_2 * r[0]
        return outputs[0] * phi_1 + D_1 * phi_2 + D_2 * phi_3
