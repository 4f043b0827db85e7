"""RES, refined exponential solvers: exponential integrators of the denoised image, in the logarithm of the clock.

With k = ln(u / u'), phi_1 = (1 - e^-k) / k, phi_2 = (1 - phi_1) / k, and y' = e^-k y + k (...) in straight
coordinates. Where the clock is sigma / alpha, its logarithm is that of the noise-to-signal ratio; on the flow path it
is that of the time, as in ComfyUI, and a grid may begin at pure noise. A step to u = 0 is an Euler step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solverdistill.families.base import History, State, Timeline, combine
from solverdistill.families.ode import OdeFamily, Slope
from solverdistill.noise.levels import analytical_denoised


def phi_pair(k: Tensor) -> tuple[Tensor, Tensor]:
    """phi_1 and phi_2 at -k."""
    phi_1 = -torch.expm1(-k) / k
    return phi_1, (1 - phi_1) / k


@dataclass(frozen=True, kw_only=True)
class RES(OdeFamily):
    """What they share."""

    def first_denoised(self, i: int, y: State, slope: Slope, values: Timeline) -> State:
        """Denoised image at the beginning of step i, analytical where `afs` says so."""
        if self.afs and i == 0:
            return analytical_denoised(y, self.path.straight(values.clock[0]))
        return self.denoised(y, values.clock[i], slope, values.straight_told(i))

    def denoised(self, y: State, u: Tensor, slope: Slope, told: object = None) -> State:
        """Denoised image of the state y at clock u."""
        return slope.denoise(y, self.path.straight(u), told)


@dataclass(frozen=True, kw_only=True)
class RESMultistep(RES):
    """One evaluation per step: y' = e^-k y + k ((phi_1 + phi_2 / r) D - (phi_2 / r) D_old), r = k_old / k.

    Reference: Zhang et al., "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models
    Sampling", 2023; started by an Euler step, as ComfyUI's `sample_res_multistep`.
    """

    name: ClassVar[str] = "res_multistep"

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        u, u_next = values.clock[i], values.clock[i + 1]
        denoised = self.first_denoised(i, y, slope, values)
        ratio = u_next / u
        if not history or bool(u_next == 0):
            return y * ratio + denoised * (1 - ratio), (denoised,)
        k = torch.log(u / u_next)
        r = torch.log(values.clock[i - 1] / u) / k
        phi_1, phi_2 = phi_pair(k)
        weights = k * (phi_1 + phi_2 / r), -k * phi_2 / r
        return y * ratio + combine((denoised, history[0]), weights), (denoised,)


@dataclass(frozen=True, kw_only=True)
class RES2S(RES):
    """Two evaluations per step, the second at the share c_2 of the way.

    y' = e^-k y + k ((phi_1 - phi_2 / c_2) D + (phi_2 / c_2) D_2)

    On paths that count in sigma / alpha, `dpmpp_2s` in its Taylor form.

    Args:
        c_2: Where the inner point lies in ln u.
    """

    c_2: float = 0.5
    name: ClassVar[str] = "res_2s"

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        u, u_next = values.clock[i], values.clock[i + 1]
        D, ratio = self.first_denoised(i, y, slope, values), u_next / u
        if bool(u_next == 0):
            return D, ()
        k = torch.log(u / u_next)
        inner = torch.exp(-self.c_2 * k)
        D_2 = self.denoised(y * inner + D * (1 - inner), u * inner, slope)
        phi_1, phi_2 = phi_pair(k)
        return y * ratio + (D * (phi_1 - phi_2 / self.c_2) + D_2 * (phi_2 / self.c_2)) * k, ()


@dataclass(frozen=True, kw_only=True)
class RES3S(RES):
    """Three evaluations per step, at the shares c_2 and c_3 of the way.

    With G = (3 c_3^3 - 2 c_3) / (c_2 (2 - 3 c_2)): a_32 = G c_2 phi_2(c_2 k) + (c_3^2 / c_2) phi_2(c_3 k), a_31 =
    c_3 phi_1(c_3 k) - a_32, b_3 = phi_2 / (G c_2 + c_3), b_2 = G b_3, b_1 = phi_1 - b_2 - b_3.

    Args:
        c_2: Where the first inner point lies in ln u; not 2/3.
        c_3: Where the second one lies.
    """

    c_2: float = 0.5
    c_3: float = 1.0
    name: ClassVar[str] = "res_3s"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c_2 in (0.0, 2 / 3):
            raise ValueError(f"c_2 of {self.name} cannot be {self.c_2}, where its weights are infinite")

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        u, u_next = values.clock[i], values.clock[i + 1]
        D, ratio = self.first_denoised(i, y, slope, values), u_next / u
        if bool(u_next == 0):
            return D, ()
        c_2, c_3, k = self.c_2, self.c_3, torch.log(u / u_next)
        G = (3 * c_3**3 - 2 * c_3) / (c_2 * (2 - 3 * c_2))
        (p_1, p_2), (_, p_22), (p_13, p_23) = (phi_pair(c * k) for c in (1.0, c_2, c_3))
        inner, second = torch.exp(-c_2 * k), torch.exp(-c_3 * k)
        D_2 = self.denoised(y * inner + D * (1 - inner), u * inner, slope)
        a_32 = G * c_2 * p_22 + c_3**2 / c_2 * p_23
        D_3 = self.denoised(y * second + (D * (c_3 * p_13 - a_32) + D_2 * a_32) * k, u * second, slope)
        b_3 = p_2 / (G * c_2 + c_3)
        weights = k * (p_1 - G * b_3 - b_3), k * G * b_3, k * b_3
        return y * ratio + combine((D, D_2, D_3), weights), ()
