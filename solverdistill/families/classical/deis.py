"""DEIS: multistep methods that extrapolate the slope as a polynomial in time (tAB) or in the clock (rhoAB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from solverdistill.families.base import Timeline
from solverdistill.families.classical.adams import AdamsBashforth
from solverdistill.families.classical.interpolation import adams_bashforth, lagrange_basis, quadrature
from solverdistill.noise.grids import vp_map

RIEMANN_POINTS = 10_000
GAUSS_POINTS = 128


@dataclass(frozen=True, kw_only=True)
class DEIS(AdamsBashforth):
    """One evaluation per step: y' = y + sum_j C_j g_{i-j}, with the slope g extrapolated in a VP process's time t.

    C_j = int_{t}^{t'} (du/dt) L_j(t) dt,   u(t)^2 = exp(b t^2 / 2 + c t) - 1

    in mode "tab", as a plain sum over 10,000 points that include both ends, as published; with one slope C = u' - u.
    A step that ends at u' = 0, where du/dt is infinite, takes the same integral over u, int_u^u' L_j(t(v)) dv, whose
    integrand is bounded. Mode "rhoab" extrapolates in the clock itself, by exact integrals at every step and order:
    it is `ipndm_v`.

    The VP process is fixed by `vp_sigma_min` and `vp_sigma_max` whatever the grid, and t is a function of the clock; on
    the flow path, whose clock is its time, that is a change of variable like any other.

    Args:
        max_order: Number of slopes, 1 to 4; the paper's tAB3 has 4. 1 is Euler.
        mode: "tab" or "rhoab".
        vp_sigma_min: u at t = 0.001 of the VP process.
        vp_sigma_max: u at t = 1 of the VP process.
    Reference: Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", ICLR 2023, Eq. 14-15.
    """

    mode: str = "tab"
    vp_sigma_min: float = 0.002
    vp_sigma_max: float = 80.0
    name: ClassVar[str] = "deis"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("tab", "rhoab"):
            raise ValueError(f"mode of deis is {self.mode!r}; known: tab, rhoab")
        if not 0 < self.vp_sigma_min < self.vp_sigma_max or vp_map(self.vp_sigma_max, self.vp_sigma_min)[0] <= 0:
            ends = f"vp_sigma_min={self.vp_sigma_min} and vp_sigma_max={self.vp_sigma_max}"
            raise ValueError(f"deis needs a VP process whose noise rate grows; {ends} do not give one")

    def weights(self, i: int, slopes: int, values: Timeline) -> Tensor:
        nodes, u_next = values.clock[i + 1 - slopes : i + 1].flip(0), values.clock[i + 1]
        if self.mode == "rhoab" or slopes == 1:
            return adams_bashforth(nodes, u_next)
        times = self._time(nodes)
        if bool(u_next == 0):
            points, weights = quadrature(nodes[0], u_next, GAUSS_POINTS)
            return weights @ lagrange_basis(times, self._time(points))
        share = torch.linspace(0, 1, RIEMANN_POINTS, dtype=torch.float64)
        width = self._time(u_next) - times[0]
        points = times[0] + width * share
        return (self._rate(points) * (width / RIEMANN_POINTS)) @ lagrange_basis(times, points)

    def _time(self, u: Tensor) -> Tensor:
        """t with u(t) = u."""
        b, c = vp_map(self.vp_sigma_max, self.vp_sigma_min)
        return (torch.sqrt(c**2 + 2 * b * torch.log1p(u**2)) - c) / b

    def _rate(self, t: Tensor) -> Tensor:
        """du/dt at t."""
        b, c = vp_map(self.vp_sigma_max, self.vp_sigma_min)
        integral = b * t**2 / 2 + c * t
        return (b * t + c) / (2 * torch.sqrt(torch.exp(-integral) * -torch.expm1(-integral)))
