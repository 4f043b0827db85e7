"""AMED on classical solvers: tables that no family of the roster has, traced from the published loops.

With g the slope at (y, sigma), tau = sigma'^r sigma^(1-r), y_m the state at tau, m the slope there with the network
told b tau, and h = sigma' - sigma::

    euler, ipndm    y_m = y + (tau - sigma) AB(g, ...),        y' = y_m + a (sigma' - tau) AB(m, ...)
    dpm             y_m = y + (tau - sigma) g,                 y' = y + a h (m / (2 r) + (1 - 1 / (2 r)) g)
    dpmpp           two multistep updates sigma -> tau -> sigma', the increment of the second multiplied by a

AB is the Adams-Bashforth combination of uniform steps; both slopes, or both outputs, enter the history.
Reference: Zhou et al., CVPR 2024, Appendix; zju-pi/diff-sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import History, State
from solverdistill.families.classical.interpolation import uniform_adams_bashforth
from solverdistill.families.ode import OdeFamily, Slope


class Coefficients(NamedTuple):
    """Coefficients of every step, each of shape (steps,)."""

    r: Tensor
    scale_dir: Tensor
    scale_time: Tensor


@dataclass(frozen=True, kw_only=True)
class Plugin(OdeFamily):
    """AMED on euler, dpm or ipndm.

    Args:
        student: Which of them.
        coefficients: Learned values.
        max_order: Largest order of ipndm.
    """

    student: str
    coefficients: Coefficients
    max_order: int = 4
    name: ClassVar[str] = "amed_plugin"

    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        u, u_next = self.timeline.clock[i], self.timeline.clock[i + 1]
        r, a, b = (value[i] for value in self.coefficients)
        tau = u_next**r * u ** (1 - r)
        g = self.first_slope(i, y, u, slope)
        order = self.max_order if self.student == "ipndm" else 1
        direction, history = _adams(g, history, order)
        middle = y + direction * (tau - u)
        m = slope(middle, tau, self.path.straight(b * tau))
        if self.student == "dpm":
            return y + (m * (0.5 / r) + g * (1 - 0.5 / r)) * (a * (u_next - u)), ()
        direction, history = _adams(m, history, order)
        return middle + direction * (a * (u_next - tau)), history


@dataclass(frozen=True, kw_only=True)
class MultistepPlugin(OdeFamily):
    """AMED on DPM-Solver++; the order counts both updates of a step.

    Args:
        coefficients: Learned values.
        max_order: Largest order, 1 to 3.
        predict_x0: Extrapolate the denoised image, otherwise the slope.
        lower_order_final: Lower the order towards the end.
    """

    coefficients: Coefficients
    max_order: int = 3
    predict_x0: bool = True
    lower_order_final: bool = True
    name: ClassVar[str] = "amed_dpmpp"

    def update(self, i: int, y: State, history: History, slope: Slope, values: Any) -> tuple[State, History]:
        clock, nodes = self.timeline.clock, self._nodes(i)
        _, a, b = (value[i] for value in self.coefficients)
        u, tau = nodes[1], nodes[0]
        g = self.first_slope(i, y, u, slope)
        outputs = (self._output(y, u, g), *history)
        middle = self._advance(y, outputs, nodes[1:], tau, self._order(2 * i + 1), torch.ones_like(tau))
        m = slope(middle, tau, self.path.straight(b * tau))
        outputs = (self._output(middle, tau, m), *outputs)[:3]
        return self._advance(middle, outputs, nodes, clock[i + 1], self._order(2 * i + 2), a), outputs[:2]

    def _nodes(self, i: int) -> list[Tensor]:
        """Levels of all outputs up to the second one of step i, newest first."""
        clock, nodes = self.timeline.clock, []
        for k in range(i + 1):
            r = self.coefficients.r[k]
            nodes += [clock[k], clock[k + 1] ** r * clock[k] ** (1 - r)]
        return nodes[::-1]

    def _order(self, update: int) -> int:
        left = 2 * self.steps + 1 - update
        return min(self.max_order, update, left if self.lower_order_final else self.max_order)

    def _output(self, y: State, u: Tensor, slope: State) -> State:
        return y - slope * u if self.predict_x0 else slope

    def _advance(
        self, y: State, outputs: History, nodes: list[Tensor], end: Tensor, order: int, scale: Tensor
    ) -> State:
        """One DPM-Solver++ update from nodes[0] to `end`, its increment multiplied by `scale`."""
        h = torch.log(nodes[0] / end)
        sign = -1.0 if self.predict_x0 else 1.0
        phi_1 = torch.expm1(sign * h)
        increment: Any = outputs[0] * phi_1
        if order == 2:
            increment = increment + self._difference(outputs, nodes, 0, h) * (phi_1 / 2)
        if order == 3:
            r = [torch.log(nodes[k + 1] / nodes[k]) / h for k in range(2)]
            newer, older = (self._difference(outputs, nodes, k, h) for k in range(2))
            second = (newer - older) / (r[0] + r[1])
            first = newer + second * r[0]
            phi_2 = phi_1 / h - sign
            phi_3 = phi_2 / h - 0.5
            increment = increment + first * (sign * phi_2) + second * phi_3
        factor = torch.ones_like(end) if self.predict_x0 else end
        linear = end / nodes[0] if self.predict_x0 else torch.ones_like(end)
        return y * linear - increment * (scale * factor)

    @staticmethod
    def _difference(outputs: History, nodes: list[Tensor], k: int, h: Tensor) -> State:
        return (outputs[k] - outputs[k + 1]) / (torch.log(nodes[k + 1] / nodes[k]) / h)


def _adams(newest: State, history: History, order: int) -> tuple[State, History]:
    slopes = (newest, *history)[:order]
    total: Any = 0
    for weight, past in zip(uniform_adams_bashforth(len(slopes)), slopes, strict=True):
        total = total + past * weight
    return total, slopes[: order - 1]
