"""IIA: classical solvers with a few coefficients per step that make it as good as several (Zhang et al., ICLR 2024).

Every step of the solver is left as it is, and a combination of quantities that it has at hand is added to it, or takes
the place of its increment::

    x' = base(x) + sum_c coefficient_c direction_c

The coefficients start where the step is the classical one. The paper finds them in closed form, step by step, so that
the step reproduces several finer ones from the same state: the form "local" of `fits.least_squares.fit`, with
a ridge of 0. In straight coordinates y, u as in `families.ode` (EDM units for every path but flow), with D the denoised
image.

Reference: Zhang, Niwa, Kleijn, "On Accelerating Diffusion-Based Sampling Processes via Improved Integration
Approximation", ICLR 2024. arXiv 2304.11328
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, Params, State, Timeline
from solverdistill.families.classical.adams import IPNDM
from solverdistill.families.classical.dpmpp import DPMpp
from solverdistill.families.learned.averaging import MeanSlope, NewestSlope
from solverdistill.families.ode import OdeFamily, Slope
from solverdistill.noise.paths import Flow


@dataclass(frozen=True, kw_only=True)
class _HeunSteps(OdeFamily):
    """Heun's method whose increment is a combination of directions of this step and of the `r` before.

    A step that ends at u = 0 is an Euler step without coefficients; those of history that is not there do not act.

    Args:
        r: Earlier steps that a step uses.
    """

    r: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 0:
            raise ValueError(f"r of {self.name} must be at least 0, not {self.r}")

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a table of coefficients: steps that have them, and this step and those before."""
        return self.steps - bool(self.timeline.clock[-1] == 0), self.r + 1

    def newest(self, of_newest: Tensor) -> Tensor:
        """Coefficients of the newest directions, and 0 for the earlier ones. of_newest: shape (steps,)."""
        values = torch.zeros(self.shape, dtype=torch.float64)
        values[:, 0] = of_newest[: self.shape[0]]
        return values

    def prepare(self, params: Params) -> Params:
        return params

    def evaluations(self, i: int, y: State, slope: Slope) -> tuple[State, State, State]:
        """Slope at the beginning, Euler's state at the end of the step, and the slope there."""
        u, u_next = self.timeline.clock[i], self.timeline.clock[i + 1]
        g = self.first_slope(i, y, u, slope)
        y_euler = y + g * (u_next - u)
        return g, y_euler, g if bool(u_next == 0) else slope(y_euler, u_next)

    def add(self, i: int, y: State, terms: list[tuple[Tensor, History]]) -> State:
        """Add directions, newest first, times their coefficients."""
        for coefficients, directions in terms:
            for k, direction in enumerate(directions):
                y = y + direction * coefficients[i, k]
        return y


@dataclass(frozen=True, kw_only=True)
class IIAEDM(_HeunSteps):
    """IIA-EDM, two evaluations per step: y' = y + sum_{k<=r} beta_eps_ik (y - D)_{i-k} + beta_D_ik (D - D~)_{i-k}.

    D~ is the denoised image at Euler's state. Params `beta_eps` and `beta_D`, shape (steps, r + 1), without a row for a
    step that ends at u = 0. They start at (u' - u) / u and (u' - u) / (2 u') in the first column, which is Heun.
    """

    name: ClassVar[str] = "iia_edm"

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ("beta_eps", "beta_D")

    def init(self, seed: int = 0) -> Params:
        u, u_next = self.timeline.clock[:-1], self.timeline.clock[1:]
        return {"beta_eps": self.newest((u_next - u) / u), "beta_D": self.newest((u_next - u) / (2 * u_next))}

    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        u, u_next = self.timeline.clock[i], self.timeline.clock[i + 1]
        g, y_euler, g_euler = self.evaluations(i, y, slope)
        if bool(u_next == 0):
            return y_euler, ()
        # D = y - u g and D~ = y_euler - u' g~
        history = (g * u, (y - g * u) - (y_euler - g_euler * u_next), *history)[: 2 * (self.r + 1)]
        terms = [(values["beta_eps"], history[0::2]), (values["beta_D"], history[1::2])]
        return self.add(i, y, terms), history[: 2 * self.r]


@dataclass(frozen=True, kw_only=True)
class BIIAEDM(_HeunSteps):
    """BIIA-EDM, two evaluations per step: y' = y + sum_{k<=r} gamma_ik (g + g~)_{i-k} / 2, g~ at Euler's state.

    Params `gamma`, shape (steps, r + 1), without a row for a step that ends at u = 0. It starts at u' - u in the first
    column, which is Heun.
    """

    name: ClassVar[str] = "biia_edm"

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ("gamma",)

    def init(self, seed: int = 0) -> Params:
        return {"gamma": self.newest(self.timeline.clock[1:] - self.timeline.clock[:-1])}

    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        g, y_euler, g_euler = self.evaluations(i, y, slope)
        if bool(self.timeline.clock[i + 1] == 0):
            return y_euler, ()
        history = ((g + g_euler) / 2, *history)[: self.r + 1]
        return self.add(i, y, [(values["gamma"], history)]), history[: self.r]


@dataclass(frozen=True, kw_only=True)
class IIADDIM(NewestSlope):
    """IIA-DDIM, one evaluation per step: x' = ddim(x) + phi_i0 (D_i - D_{i-1}) + phi_i1 (e_i - e_{i-1}).

    e is the noise that belongs to D; x is in the path's own scale. Params `phi` (steps, 2), initially 0, which is DDIM;
    the first row does not act.
    """

    name: ClassVar[str] = "iia_ddim"

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ("phi",)

    def init(self, seed: int = 0) -> Params:
        return {"phi": torch.zeros(self.steps, 2, dtype=torch.float64)}

    def prepare(self, params: Params) -> Params:
        return params

    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        u, u_next, scale = self.timeline.clock[i], self.timeline.clock[i + 1], self.timeline.scale[i + 1]
        slopes = (self.first_slope(i, y, u, slope), *history[2:])[: 1 + self.remembered()]
        g = self.average(i, slopes)
        denoised = y - g * u
        noise = denoised + g if isinstance(self.path, Flow) else g
        y = y + g * (u_next - u)
        for k, (new, old) in enumerate(zip((denoised, noise), history[:2], strict=False)):
            y = y + (new - old) * (values["phi"][i, k] / scale)
        return y, (denoised, noise, *slopes[: self.remembered()])


@dataclass(frozen=True, kw_only=True)
class IIAIPNDM(IIADDIM, MeanSlope, IPNDM):
    """IIA-iPNDM, one evaluation per step: `ipndm` with the correction of `iia_ddim`.

    D and e are the denoised image and the noise that the averaged slope of the step stands for. Params as there.
    """

    name: ClassVar[str] = "iia_ipndm"


class _Adding(Timeline):
    """The fixed grid with the coefficients of what is added. Shape of phi: (steps, 2)."""

    def __init__(self, timeline: Timeline, phi: Tensor) -> None:
        super().__init__(timeline.path, timeline.s)
        self.phi = phi


@dataclass(frozen=True, kw_only=True)
class IIADPMpp(DPMpp):
    """IIA-DPM-Solver++, one evaluation per step: x' = dpmpp(x) + phi_i0 x_i + phi_i1 D_i, in the path's own scale.

    Params `phi` (steps, 2), initially 0, which is `dpmpp`.
    """

    name: ClassVar[str] = "iia_dpmpp"

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ("phi",)

    def init(self, seed: int = 0) -> Params:
        return {"phi": torch.zeros(self.steps, 2, dtype=torch.float64)}

    def prepare(self, params: Params) -> _Adding:
        return _Adding(self.timeline, params["phi"])

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Any) -> tuple[State, History]:
        denoised = self.denoised(i, x, denoise, values)
        new, history = super().step(i, x, history, lambda *_: denoised, values)
        return new + x * values.phi[i, 0] + denoised * values.phi[i, 1], history


IIA_FAMILIES: tuple[type[Family], ...] = (IIAEDM, BIIAEDM, IIADDIM, IIAIPNDM, IIADPMpp)
