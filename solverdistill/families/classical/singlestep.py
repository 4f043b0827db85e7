"""Euler (= DDIM), Heun and DPM-Solver-2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from solverdistill.families.base import History, State, Timeline
from solverdistill.families.ode import OdeFamily, Slope


@dataclass(frozen=True, kw_only=True)
class Euler(OdeFamily):
    """One evaluation per step: y' = y + (u' - u) g. In straight coordinates this is DDIM.

    Reference: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", ICLR 2021, Eq. 12.
    """

    name: ClassVar[str] = "euler"

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        u, u_next = values.clock[i], values.clock[i + 1]
        return y + self.first_slope(i, y, u, slope, values.straight_told(i)) * (u_next - u), ()


@dataclass(frozen=True, kw_only=True)
class Heun(OdeFamily):
    """Trapezoidal rule with an Euler predictor, two evaluations per step; a step that ends at u = 0 is an Euler step.

    Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, Alg. 1.
    """

    name: ClassVar[str] = "heun"

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        u, u_next = values.clock[i], values.clock[i + 1]
        g = self.first_slope(i, y, u, slope, values.straight_told(i))
        y_euler = y + g * (u_next - u)
        if bool(u_next == 0):
            return y_euler, ()
        return y + (g + slope(y_euler, u_next, values.straight_told(i + 1))) * ((u_next - u) / 2), ()


@dataclass(frozen=True, kw_only=True)
class DPMSolver2(OdeFamily):
    """Single-step second order with the intermediate point u'^r u^(1-r), two evaluations per step.

    y' = y + (u' - u) (m / (2 r) + (1 - 1 / (2 r)) g), m the slope at the intermediate point. r = 1 on one step is Heun.

    Args:
        r: Position of the intermediate point in log u, in (0, 1].
    Reference: Lu et al., "DPM-Solver", NeurIPS 2022, Alg. 1, in the EDM form used by AMED-Solver.
    """

    r: float = 0.5
    name: ClassVar[str] = "dpm2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.r <= 1:
            raise ValueError(f"r of dpm2 must lie in (0, 1], not {self.r}")

    def update(self, i: int, y: State, history: History, slope: Slope, values: Timeline) -> tuple[State, History]:
        u, u_next = values.clock[i], values.clock[i + 1]
        g = self.first_slope(i, y, u, slope, values.straight_told(i))
        if bool(u_next == 0):
            return y + g * (u_next - u), ()
        middle = u_next**self.r * u ** (1 - self.r)
        m = slope(y + g * (middle - u), middle)
        return y + (m / (2 * self.r) + g * (1 - 1 / (2 * self.r))) * (u_next - u), ()
