"""D-ODE: classical solvers with one scalar lambda per evaluation, fitted in closed form (Kim et al., CVPR 2024).

The network's output f is extrapolated along its last change, f + lambda (f - f_previous), which keeps the sum of the
coefficients. f is what a network of the path predicts: the denoised image on edm, the noise on vp, discrete and cosine,
the velocity on flow. In straight coordinates y, u the last two are the slope g = (y - denoised) / u itself. At the
beginning there is no previous output: noise prediction takes the initial state for it, as published; the others leave
the correction out, and the first lambda is without effect. Where the paper's code lets lambda absorb the factor of its
step, so do these solvers: lambda multiplies f - f_previous in the path's own scale, unless said otherwise.

All lambdas 0 is the classical solver. `solverdistill.fits.fit_dode` finds them by one least-squares problem each, one
after the other; they can also be trained by gradient descent.

Reference: Kim et al., "Distilling ODE Solvers of Diffusion Models into Smaller Steps", CVPR 2024. arXiv 2309.16421
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import History, Params, State
from solverdistill.families.classical.adams import IPNDM
from solverdistill.families.classical.deis import DEIS
from solverdistill.families.learned.averaging import MeanSlope, NewestSlope
from solverdistill.families.ode import OdeFamily, Slope
from solverdistill.noise.levels import Level, analytical_denoised
from solverdistill.noise.paths import EDM, Flow

Corrections = Callable[[int, State, State], State]  # correct(k, y, direction) -> y + lambda_k direction


class Output(NamedTuple):
    """One evaluation at clock u: the slope g and the prediction f."""

    u: Tensor
    g: State
    f: State


@dataclass(frozen=True, kw_only=True)
class DistilledODE(OdeFamily):
    """A solver with lambdas, its only params: `lambdas`, initially 0.

    `prepare` turns them into the function that adds lambda_k times a direction to a straight-coordinate state; k counts
    the flattened lambdas. A least-squares fit runs the same steps with a function that finds lambda_k.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the lambdas."""

    def corrected_levels(self) -> list[Level]:
        """Level, in the path's scale, of the state that each lambda moves: where teacher states are its target."""
        return [self.timeline.level(i + 1) for i in range(self.steps)]

    def init(self, seed: int = 0) -> Params:
        return {"lambdas": torch.zeros(self.shape, dtype=torch.float64)}

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ("lambdas",)

    def prepare(self, params: Params) -> Corrections:
        lambdas = params["lambdas"].flatten()
        return lambda k, y, direction: y + direction * lambdas[k]

    def output(self, y: State, u: Tensor, slope: Slope, analytical: bool = False) -> Output:
        """Evaluate the network at y, or take the denoised image of unit-variance data for it."""
        level = self.path.straight(u)
        denoised = analytical_denoised(y, level) if analytical else slope.denoise(y, level)
        g = (y - denoised) / u
        return Output(u, g, denoised if isinstance(self.path, EDM) else g)

    def previous(self, i: int, y: State, history: History) -> State | None:
        """The prediction before that of step i; None at the beginning where there is none."""
        if i > 0:
            return history[0]
        return None if isinstance(self.path, (EDM, Flow)) else y * self.timeline.scale[0]


@dataclass(frozen=True, kw_only=True)
class DODEDDIM(DistilledODE, NewestSlope):
    """D-DDIM, one evaluation per step: x' = ddim(x) + lambda_i (f_i - f_{i-1}). `lambdas` has shape (steps,)."""

    name: ClassVar[str] = "dode_ddim"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.steps,)

    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        u, u_next = self.timeline.clock[i], self.timeline.clock[i + 1]
        output = self.output(y, u, slope, analytical=self.afs and i == 0)
        slopes = (output.g, *history[1:])[: 1 + self.remembered()]
        g, previous = self.average(i, slopes), self.previous(i, y, history)
        f = output.f
        if len(slopes) > 1:  # the prediction that the averaged slope stands for
            f = f - (g - output.g) * u if isinstance(self.path, EDM) else g
        y = y + g * (u_next - u)
        if previous is not None:
            y = values(i, y, (f - previous) / self.timeline.scale[i + 1])
        return y, (f, *slopes[: self.remembered()])


@dataclass(frozen=True, kw_only=True)
class DODEMultistep(DODEDDIM, MeanSlope):
    """Multistep solvers: f_i is what the solver's combination of outputs, coefficients summing to 1, stands for."""


@dataclass(frozen=True, kw_only=True)
class DODEIPNDM(DODEMultistep, IPNDM):
    """D-iPNDM, one evaluation per step: `ipndm` with x' + lambda_i (f_i - f_{i-1}) of its combined outputs."""

    name: ClassVar[str] = "dode_ipndm"


@dataclass(frozen=True, kw_only=True)
class DODEDEIS(DODEMultistep, DEIS):
    """D-DEIS, one evaluation per step: `deis` with x' + lambda_i (f_i - f_{i-1}) of its combined outputs."""

    name: ClassVar[str] = "dode_deis"


@dataclass(frozen=True, kw_only=True)
class DODEEDM(DistilledODE):
    """D-EDM, Heun's method with a correction of the predictor and one of the corrector.

    x~ = x + (u' - u) g + lambda_{2i} (f - f_previous)                  f_previous: that of the last corrector
    x' = x + (u' - u) (g + g~) / 2 + lambda_{2i+1} (f~ - f)             g~, f~: at the corrected x~

    in EDM units; a step that ends at u = 0 is the predictor. `lambdas` has one entry per evaluation, in their order.
    """

    name: ClassVar[str] = "dode_edm"

    @property
    def shape(self) -> tuple[int, ...]:
        return (2 * self.steps - bool(self.timeline.clock[-1] == 0),)

    def corrected_levels(self) -> list[Level]:
        return [self.timeline.level(k // 2 + 1) for k in range(self.shape[0])]

    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        u, u_next, scale = self.timeline.clock[i], self.timeline.clock[i + 1], self.timeline.scale[i + 1]
        output, previous = self.output(y, u, slope, analytical=self.afs and i == 0), self.previous(i, y, history)
        predicted = y + output.g * (u_next - u)
        if previous is not None:
            predicted = values(2 * i, predicted, (output.f - previous) / scale)
        if bool(u_next == 0):
            return predicted, (output.f,)
        second = self.output(predicted, u_next, slope)
        y = y + (output.g + second.g) * ((u_next - u) / 2)
        return values(2 * i + 1, y, (second.f - output.f) / scale), (second.f,)


@dataclass(frozen=True, kw_only=True)
class DODEDPM(DistilledODE):
    """D-DPM-Solver, singlestep, `order` evaluations per step, with a lambda each: `lambdas` has shape (steps, order).

    With u_k the inner points, r_k = log(u / u_k) / log(u / u') and [.] the slope whose output was extrapolated along
    its change since the evaluation before (the last of the step before, for g), lambda inside the factor of the step::

        y_1 = y + (u_1 - u) [g]
        y'  = y + (u' - u) (g + ([g_1] - g) / (2 r_1))                                               order 2
        y_2 = y + (u_2 - u) g - (r_2 / r_1) u_2 psi(u / u_2) ([g_1] - g)                             order 3
        y'  = y + (u' - u) g - (1 / r_2) u' psi(u / u') ([g_2] - g),     psi(q) = (q - 1) / log(q) - 1

    A step that ends at u = 0 has one evaluation: y' = y + (u' - u) [g]. The published mixture of orders in one solve,
    for evaluations that `order` does not divide, is not offered.

    Args:
        order: 2 or 3.
        spacing: Inner points evenly spaced in the path's own "time", as published, or in "logsnr", where order 2 is
            `dpm2`; None takes time, and logsnr on edm, which has no time of its own.
    """

    order: int = 2
    spacing: str | None = None
    name: ClassVar[str] = "dode_dpm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (2, 3):
            raise ValueError(f"order of dode_dpm must be 2 or 3, not {self.order}")
        if self.spacing not in (None, "time", "logsnr"):
            raise ValueError(f"spacing of dode_dpm is {self.spacing!r}; known: time, logsnr")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.steps, self.order)

    def corrected_levels(self) -> list[Level]:
        levels = []
        for i in range(self.steps):
            end, singular = self.timeline.level(i + 1), bool(self.timeline.clock[i + 1] == 0)
            levels += [end if singular else self.path.level(s) for s in self.inner(i)]
            levels.append(end)
        return levels

    def inner(self, i: int) -> Tensor:
        """Noise levels between grid points i and i + 1, in the path's own unit. Shape: (order - 1,)."""
        share = torch.arange(1, self.order, dtype=torch.float64) / self.order
        if (self.spacing or ("logsnr" if isinstance(self.path, EDM) else "time")) == "time":
            return torch.lerp(self.timeline.s[i], self.timeline.s[i + 1], share)
        u, u_next = self.timeline.clock[i], self.timeline.clock[i + 1]
        return self.path.from_clock(u ** (1 - share) * u_next**share)

    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        u, u_next = self.timeline.clock[i], self.timeline.clock[i + 1]
        first, previous = self.output(y, u, slope, analytical=self.afs and i == 0), self.previous(i, y, history)
        ends = [u_next] if bool(u_next == 0) else [*self.path.clock(self.inner(i)), u_next]
        x, newest = self._extrapolated(i, 0, y + first.g * (ends[0] - u), ends[0] - u, first, previous, values), first
        for k in range(1, len(ends)):
            output, factor = self.output(x, ends[k - 1], slope), _factor(u, ends, k)
            x = y + first.g * (ends[k] - u) + (output.g - first.g) * factor
            x, newest = self._extrapolated(i, k, x, factor, output, newest.f, values), output
        return x, (newest.f,)

    def _extrapolated(
        self, i: int, k: int, x: State, factor: Tensor, output: Output, previous: State | None, values: Corrections
    ) -> State:
        """Extrapolate the output whose slope entered x with `factor`."""
        if previous is None:
            return x
        change = (previous - output.f) / output.u if isinstance(self.path, EDM) else output.f - previous
        return values(i * self.order + k, x, change * factor)


def _factor(u: Tensor, ends: list[Tensor], k: int) -> Tensor:
    """Factor of g_k - g in the state at ends[k], where `ends` are the inner points and the end of the step."""
    r = [torch.log(u / end) / torch.log(u / ends[-1]) for end in ends]
    if len(ends) == 2:
        return (ends[1] - u) / (2 * r[0])
    ratio = u / ends[k]
    return -(r[k] / r[k - 1]) * ends[k] * ((ratio - 1) / torch.log(ratio) - 1)


DODE_FAMILIES = (DODEDDIM, DODEIPNDM, DODEDEIS, DODEEDM, DODEDPM)
