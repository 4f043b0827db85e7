"""Adams-Bashforth methods in straight coordinates: iPNDM and its variable-step form."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from solverdistill.families.base import History, State, Timeline
from solverdistill.families.classical.interpolation import adams_bashforth, uniform_adams_bashforth
from solverdistill.families.ode import OdeFamily, Slope
from solverdistill.noise.levels import float64


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth(OdeFamily):
    """One evaluation per step: y' = y + sum_j w_j g_{i-j}, over the newest `max_order` slopes g.

    The first steps use the slopes there are, so a solve started from noise alone has order 2 at most in the limit of
    small steps; the nominal order holds for exact earlier slopes. A grid may end at u = 0.

    Args:
        max_order: Number of slopes, 1 to 4; 1 is Euler.
    """

    max_order: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.max_order <= 4:
            raise ValueError(f"max_order of {self.name} must be 1 to 4, not {self.max_order}")

    @abstractmethod
    def weights(self, i: int, slopes: int, values: Timeline) -> Tensor:
        """Weights of step i for that many slopes, newest first. Shape: (slopes,)."""

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        g = self.first_slope(i, y, values.clock[i], slope, values.straight_told(i))
        slopes = (g, *history)[: self.max_order]
        for weight, past in zip(self.weights(i, len(slopes), values), slopes, strict=True):
            y = y + past * weight
        return y, slopes[: self.max_order - 1]


@dataclass(frozen=True, kw_only=True)
class IPNDM(AdamsBashforth):
    """Adams-Bashforth with the weights of uniform steps, w = (u' - u) (55, -59, 37, -9) / 24, whatever the grid.

    Its order is nominal on grids uniform in the clock only.

    Reference: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022, Eq. 12; started
    with lower orders as in Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", ICLR 2023.
    """

    name: ClassVar[str] = "ipndm"

    def weights(self, i: int, slopes: int, values: Timeline) -> Tensor:
        return float64(uniform_adams_bashforth(slopes)) * (values.clock[i + 1] - values.clock[i])


@dataclass(frozen=True, kw_only=True)
class IPNDMV(AdamsBashforth):
    """Adams-Bashforth with the exact weights of the grid's own steps, w_j = int_u^u' L_j(v) dv.

    The published closed form differs for 3 and 4 slopes, where brackets and signs are misplaced, and this class does
    not reproduce it. On coarse, strongly graded grids its weights extrapolate less and can be the more accurate ones,
    but with 4 slopes they lose an order. Equals `ipndm` on a grid uniform in the clock.

    Reference: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, Section III.5.
    """

    name: ClassVar[str] = "ipndm_v"

    def weights(self, i: int, slopes: int, values: Timeline) -> Tensor:
        return adams_bashforth(values.clock[i + 1 - slopes : i + 1].flip(0), values.clock[i + 1])
