"""Solvers that k-diffusion and ComfyUI brought: heunpp2, lms and gradient_estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from solverdistill.families.base import History, State, Timeline
from solverdistill.families.classical.adams import IPNDMV
from solverdistill.families.ode import OdeFamily, Slope


@dataclass(frozen=True, kw_only=True)
class LMS(IPNDMV):
    """`ipndm_v` whose step to u = 0, where the interpolation would extrapolate most, is an Euler step.

    Reference: Crowson, k-diffusion, `sample_lms`; as ComfyUI runs it.
    """

    name: ClassVar[str] = "lms"

    def weights(self, i: int, slopes: int, values: Timeline) -> Tensor:
        if bool(values.clock[i + 1] == 0):
            only = values.clock.new_zeros(slopes)
            only[0] = values.clock[i + 1] - values.clock[i]
            return only
        return super().weights(i, slopes, values)


@dataclass(frozen=True, kw_only=True)
class GradientEstimation(OdeFamily):
    """One evaluation per step: y' = y + (u' - u) (gamma g + (1 - gamma) g_old).

    The first step and one to u = 0 are Euler steps. Of first order, but for gamma = 3/2 on even steps: there it is that
    of Adams and Bashforth.

    Args:
        gamma: How far the slope is extrapolated; 1 is Euler.
    Reference: Permenter and Yuan, "Interpreting and Improving Diffusion Models from an Optimization Perspective", ICML
    2024; gamma = 2 as there.
    """

    gamma: float = 2.0
    name: ClassVar[str] = "gradient_estimation"

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        u, u_next = values.clock[i], values.clock[i + 1]
        g = self.first_slope(i, y, u, slope, values.straight_told(i))
        used = g
        if history and not bool(u_next == 0):
            used = g * self.gamma + history[0] * (1 - self.gamma)
        return y + used * (u_next - u), (g,)


@dataclass(frozen=True, kw_only=True)
class HeunPP2(OdeFamily):
    """Three evaluations per step, the later ones at the ends of this step and of the next; of first order.

    y_1 = y + h g,  g_1 at u';  y_2 = y_1 + h' g_1,  g_2 at u'';  y' = y + h ((1 - w_1 - w_2) g + w_1 g_1 + w_2 g_2)

    with w_1 = u' / (3 u_0) and w_2 = u'' / (3 u_0). A step before one to u = 0 has two evaluations, w_1 = u' / (2 u_0);
    that to u = 0, and here the last one of any grid, is an Euler step.

    Reference: Li et al., "Heun++", as ComfyUI's `sample_heunpp2` has it.
    """

    name: ClassVar[str] = "heunpp2"

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        clock = values.clock
        h, g = clock[i + 1] - clock[i], self.first_slope(i, y, clock[i], slope, values.straight_told(i))
        if i + 1 == self.steps:
            return y + g * h, ()
        y_1 = y + g * h
        g_1 = slope(y_1, clock[i + 1], values.straight_told(i + 1))
        if bool(clock[i + 2] == 0):
            w = clock[i + 1] / (2 * clock[0])
            return y + (g * (1 - w) + g_1 * w) * h, ()
        g_2 = slope(y_1 + g_1 * (clock[i + 2] - clock[i + 1]), clock[i + 2], values.straight_told(i + 2))
        w_1, w_2 = clock[i + 1] / (3 * clock[0]), clock[i + 2] / (3 * clock[0])
        return y + (g * (1 - w_1 - w_2) + g_1 * w_1 + g_2 * w_2) * h, ()
