"""UniPC: a multistep predictor whose next evaluation also corrects the step just taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, History, State, Timeline
from solverdistill.families.classical.exponential import ExponentialIntegrator, Linear, phi


@dataclass(frozen=True, kw_only=True)
class UniPC(ExponentialIntegrator):
    """One evaluation per step; the corrector runs on every step but the last.

    x_p = c x - S z phi_1 m - S B sum_j p_j (m_{i-j} - m) / r_j                              predictor
    x'  = c x - S z phi_1 m - S B (sum_j q_j (m_{i-j} - m) / r_j + q_last (m(x_p) - m))      corrector

    with r_j = (lambda_{i-j} - lambda_i) / h, last r = 1; q from sum_j q_j r_j^(k-1) = z phi_{k+1} k! / B for each k, p
    from the leading equations; p = 1/2 at order 2 and q = 1/2 at order 1. m is the denoised image (c = sigma'/sigma,
    S = alpha', z = -h) or the noise (c = alpha'/alpha, S = sigma', z = h). The output at x_p stands in for that at x'.

    Args:
        variant: B = z ("bh1") or exp(z) - 1 ("bh2").
    Reference: Zhao et al., "UniPC", NeurIPS 2023, Alg. 1-2.
    """

    variant: str = "bh2"
    name: ClassVar[str] = "unipc"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"variant of unipc is {self.variant!r}; known: bh1, bh2")

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Timeline) -> tuple[State, History]:
        if not history:
            denoised = self.denoised(i, x, denoise, values)
            if values.singular(i):
                return self.first_order(i, x, denoised, values), ()
            history = (self.output(i, x, denoised, values),)
        elif values.singular(i):
            return self.first_order(i, x, self._to_denoised(i, x, history[0], values), values), ()
        order = self.order_at(i, len(history))
        linear = self.linear(i, values)
        r = self._positions(i, order, values)
        matrix, rhs, B = self._equations(r, linear.z)
        differences = [(past - history[0]) / r[j] for j, past in enumerate(history[1:order])]
        plain = x * linear.c - history[0] * (linear.S * torch.expm1(linear.z))
        predicted = self._add(plain, linear, B, self._predictor(order, matrix, rhs), differences)
        if i == self.steps - 1:
            return predicted, ()
        new = self.output(i + 1, predicted, self.denoised(i + 1, predicted, denoise, values), values)
        weights = torch.linalg.solve(matrix, rhs) if order > 1 else torch.full_like(rhs, 0.5)
        corrected = self._add(plain, linear, B, weights, [*differences, new - history[0]])
        return corrected, (new, *history)[: self.order]

    def _to_denoised(self, i: int, x: State, output: State, values: Timeline) -> State:
        return output if self.predict_x0 else (x - output * values.sigma[i]) / values.alpha[i]

    @staticmethod
    def _positions(i: int, order: int, values: Timeline) -> Tensor:
        """r_j of the earlier outputs, newest first, and 1 for the output at the end of the step. Shape: (order,)."""
        half_log_snr = values.half_log_snr[i + 1 - order : i + 2]
        offsets = half_log_snr - half_log_snr[-2]
        return torch.cat([offsets[:-2].flip(0), offsets[-1:]]) / offsets[-1]

    def _equations(self, r: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Powers r_j^(k-1), the right-hand sides z phi_{k+1} k! / B, and B."""
        B = z if self.variant == "bh1" else torch.expm1(z)
        factors = phi(z, len(r) + 1)[1:]
        rhs = torch.stack([z * factor * math.factorial(k) / B for k, factor in enumerate(factors, start=1)])
        return torch.stack([r**k for k in range(len(r))]), rhs, B

    @staticmethod
    def _predictor(order: int, matrix: Tensor, rhs: Tensor) -> Tensor:
        if order == 2:
            return torch.full_like(rhs[:1], 0.5)
        return torch.linalg.solve(matrix[: order - 1, : order - 1], rhs[: order - 1])

    @staticmethod
    def _add(plain: State, linear: Linear, B: Tensor, weights: Tensor, differences: list[State]) -> State:
        for weight, difference in zip(weights, differences, strict=True):
            plain = plain - difference * (linear.S * B * weight)
        return plain
