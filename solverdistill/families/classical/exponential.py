"""What DPM-Solver++ and UniPC share: exponential integrators of the probability-flow ODE in half_log_snr.

With lambda = half_log_snr, the linear part of the ODE is solved exactly and the network's output m is extrapolated as a
polynomial in lambda. Data prediction (m = denoised) and noise prediction (m = (x - alpha denoised) / sigma) give::

    x' = (sigma'/sigma) x + sigma' int exp(l) m(l) dl           data,  integral from lambda to lambda'
    x' = (alpha'/alpha) x - alpha' int exp(-l) m(l) dl          noise

Both are ``x' = c x - S z (phi_1 m + phi_2 m_1 + phi_3 m_2 + ...)`` with h = lambda' - lambda and m_k = h^k times
the k-th derivative of m in lambda; S = alpha' and z = -h for data, S = sigma' and z = h for noise. At first order they
coincide (and are DDIM); that step is taken where lambda is infinite, in the form that stays finite there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, State, Timeline
from solverdistill.noise.levels import analytical_denoised


class Linear(NamedTuple):
    """Coefficients of one step: x' = c x - S z (...)."""

    c: Tensor
    S: Tensor
    z: Tensor


def phi(z: Tensor, count: int) -> list[Tensor]:
    """phi_1 = (e^z - 1) / z and phi_{k+1} = (phi_k - 1 / k!) / z, the first `count` of them."""
    values = [torch.expm1(z) / z]
    for k in range(1, count):
        values.append((values[-1] - 1 / math.factorial(k)) / z)
    return values


@dataclass(frozen=True, kw_only=True)
class ExponentialIntegrator(Family):
    """A multistep family in half_log_snr.

    A step that begins at alpha = 0 or ends at sigma = 0 is of first order, and the output at alpha = 0 is not
    extrapolated from. The first steps use the outputs there are.

    Args:
        order: Largest order, 1 to 3; 1 is DDIM.
        predict_x0: Extrapolate the denoised image; otherwise the noise.
        lower_order_final: Lower the order towards the last step, to as many steps as remain.
        afs: Analytical first step: replace the first denoised image by that of unit-variance data and save an
            evaluation.
    """

    order: int = 2
    predict_x0: bool = True
    lower_order_final: bool = True
    afs: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3:
            raise ValueError(f"order of {self.name} must be 1 to 3, not {self.order}")

    def denoised(self, i: int, x: State, denoise: Evaluator, values: Timeline) -> State:
        """Denoised image of the state at grid point i, analytical at the first where `afs` says so."""
        if self.afs and i == 0:
            return analytical_denoised(x, values.level(0))
        return denoise(x, values.level(i), values.told(i))

    def output(self, i: int, x: State, denoised: State, values: Timeline) -> State:
        """What is extrapolated: the denoised image or the noise."""
        return denoised if self.predict_x0 else (x - denoised * values.alpha[i]) / values.sigma[i]

    def first_order(self, i: int, x: State, denoised: State, values: Timeline) -> State:
        """x' = (sigma'/sigma) x + (alpha' - sigma' alpha / sigma) denoised, finite at alpha = 0 and at sigma' = 0."""
        ratio = values.sigma[i + 1] / values.sigma[i]
        return x * ratio + denoised * (values.alpha[i + 1] - ratio * values.alpha[i])

    def linear(self, i: int, values: Timeline) -> Linear:
        """Coefficients of a step between finite half_log_snr."""
        h = values.half_log_snr[i + 1] - values.half_log_snr[i]
        if self.predict_x0:
            return Linear(values.sigma[i + 1] / values.sigma[i], values.alpha[i + 1], -h)
        return Linear(values.alpha[i + 1] / values.alpha[i], values.sigma[i + 1], h)

    def order_at(self, i: int, outputs: int) -> int:
        """Order of step i where that many outputs are known."""
        if outputs < self.order or not self.lower_order_final:
            return min(self.order, outputs)
        return min(self.order, self.steps - i)
