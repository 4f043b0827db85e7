"""GS, the generalised solver of GAS (Oganov et al., "GAS: Improving Discretization of Diffusion ODEs via Generalized
Adversarial Solver", ICLR 2026): learned times, decoupled network times, and corrections to DPM-Solver++(3M).

Step n of N with k = min(n + 1, order) outputs m and states x in memory, h = lambda' - lambda, lambda = half_log_snr::

    m_n = denoised image from the network's eps at (x_n, t_n + xi_n), converted with alpha, sigma of t_n
    x'  = (sigma'/sigma + a_1) x_n + sum_{i=2..k} a_i x_{n+1-i}
          - (alpha' p_1 + c_1) m_n + (alpha' p_2 + c_2) d_1 - (alpha' p_3 + c_3) d_2 + sum_{i=4..k} c_i m_{n+1-i}

with p_1 = e^-h - 1, p_2 = p_1 / h + 1, p_3 = p_2 / h - 1/2, r_j = (lambda_{n-j} - lambda_{n-j-1}) / h,
D_j = (m_{n-j} - m_{n-j-1}) / r_j, d_2 = (D_0 - D_1) / (r_0 + r_1) and d_1 = D_0 + r_0 d_2. With two outputs the second
line is -(alpha' p_1 + c_1) m_n - (alpha' p_1 / 2 + c_2) D_0. All entries a, c of a step are free numbers.

Times come from stick-breaking, mu = (1 - 2e) sigmoid(mu_logit) + e with e = 1e-5, counted from the end of the grid::

    t_j = t_end + (t_start - t_end) (1 - mu_1 ... mu_j)

so they are monotone whatever the params. t is the path's own unit; on the edm path it is the time of a VP process,
t = sqrt(log(1 + sigma^2) / log(1 + sigma_start^2)), in which clean data has t = 0.

A step that ends at clean data, and outputs at pure noise (alpha = 0, flow and cosine), leave the exponential
integrator: the analytical part is of first order there and the corrections c_i act on the outputs themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, Params, State, combine
from solverdistill.families.classical.dpmpp import DPMpp
from solverdistill.families.classical.exponential import phi
from solverdistill.families.learned.decoupled import Decoupled, DecoupledTimeline
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM

MARGIN = 1e-5
STARTS = ("lower_order_final", "dpmpp", "paper")


class Values(NamedTuple):
    """What a step reads: learned times, and corrections of shape (order, steps)."""

    timeline: DecoupledTimeline
    c: Tensor
    a: Tensor


class Basis(NamedTuple):
    """Images that a step adds up, their analytical coefficients, and the signs with which corrections enter."""

    images: list[State]
    coefficients: Tensor
    signs: Tensor


@dataclass(frozen=True, kw_only=True)
class GAS(Family):
    """Generalised solver: one evaluation per step, 2 N^2 + 2 N - 1 params at full order.

    Params: `mu_logit` (N - 1) times, `t_couple` (N) offsets xi in units of t, `c{i}_diff` and `a{i}_diff` (N each)
    for i = 1 .. order; entries [n] with i > n + 1 never act. Corrections are in the path's scale. It starts as `dpmpp`
    with lower_order_final on the same grid, unless `init_from` says otherwise.

    Args:
        order: Outputs and states that a step can use; None (and anything above N) is N.
        init_from: "lower_order_final": times of the grid, and corrections that turn the last steps into those of
            `dpmpp`; "dpmpp": times of the grid, no corrections; "paper": uniform times, no corrections.
        use_theory_coef: False is the published ablation without the analytical part, with s = sigma'/sigma and
            C = -alpha' p_1: x' = s (s x_n + C sum_i c_i m_{n+1-i}) + C sum_i a_i m_{n+1-i}. It is not consistent at its
            start, because s enters twice.
    Reference: Oganov et al., ICLR 2026, Eq. 10-14.
    """

    order: int | None = None
    init_from: str = "lower_order_final"
    use_theory_coef: bool = True
    name: ClassVar[str] = "gas"

    def __post_init__(self) -> None:
        if self.order is not None and self.order < 1:
            raise ValueError(f"order of {self.name} must be at least 1, not {self.order}")
        if self.init_from not in STARTS:
            raise ValueError(f"init_from of {self.name} is {self.init_from!r}; known: {', '.join(STARTS)}")
        if bool(self.timeline.alpha[0] == 0) and self.path.name not in ("flow", "cosine"):
            raise ValueError(
                f"{self.name} cannot start at alpha = 0 on the {self.path.name} path; begin slightly lower"
            )

    @property
    def memory(self) -> int:
        """Outputs and states that a step can use: `order`, at most the number of steps."""
        return self.steps if self.order is None else min(self.order, self.steps)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """First and last grid point in units of t."""
        first, last = self._to_time(float64(self.grid))[[0, -1]].tolist()
        return first, last

    def starts(self) -> tuple[dict[str, Any], ...]:
        return ({"init_from": "lower_order_final"}, {"init_from": "dpmpp"})

    def init(self, seed: int = 0) -> Params:
        return {name: value.clone() for name, value in self._initial.items()}

    @cached_property
    def _initial(self) -> Params:
        times = self._to_time(float64(self.grid))
        if self.init_from == "paper":
            times = torch.linspace(*self.ends, self.steps + 1, dtype=torch.float64)
        zeros = torch.zeros(self.steps, dtype=torch.float64)
        params = {"mu_logit": self._to_logits(times), "t_couple": zeros.clone()}
        corrections = self._initial_c(self._timeline(params))
        for i in range(self.memory):
            params[f"c{i + 1}_diff"], params[f"a{i + 1}_diff"] = corrections[i], zeros.clone()
        return params

    @property
    def linear_params(self) -> tuple[str, ...]:
        return tuple(f"{letter}{i + 1}_diff" for i in range(self.memory) for letter in "ca")

    def prepare(self, params: Params) -> Values:
        c, a = (torch.stack([params[f"{letter}{i + 1}_diff"] for i in range(self.memory)]) for letter in "ca")
        return Values(self._timeline(params), c, a)

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Values) -> tuple[State, History]:
        """Advance from grid point i; history is (m, x) of earlier grid points, newest first, flat."""
        timeline = values.timeline
        m = Decoupled(denoise, self.path)(x, timeline.level(i), timeline.told(i))
        history = (m, x, *history)
        new = self._advance(i, history[0::2], history[1::2], values)
        return new, history[: 2 * (self.memory - 1)]

    def _advance(self, i: int, outputs: History, states: History, values: Values) -> State:
        ratio = values.timeline.sigma[i + 1] / values.timeline.sigma[i]
        c, a = values.c[: len(outputs), i], values.a[: len(outputs), i]
        if not self.use_theory_coef:
            factor = values.timeline.alpha[i + 1] - ratio * values.timeline.alpha[i]
            return states[0] * ratio**2 + combine(outputs, (c * ratio + a) * factor)
        basis = self._basis(i, outputs, values.timeline)
        new = states[0] * ratio + combine(basis.images, basis.coefficients + basis.signs * c)
        return new + combine(states, a)

    def _basis(self, i: int, outputs: History, timeline: DecoupledTimeline) -> Basis:
        """Images and coefficients of DPM-Solver++ of the highest order that the outputs allow."""
        order = self._possible_order(i, len(outputs), timeline)
        ratio = timeline.sigma[i + 1] / timeline.sigma[i]
        first = timeline.alpha[i + 1] - ratio * timeline.alpha[i]  # = -alpha' p_1
        signs = torch.ones(len(outputs), dtype=torch.float64)
        signs[0] = -1.0
        images, coefficients = list(outputs), [first]
        if order == 1:
            return Basis(images, torch.stack(coefficients + [torch.zeros_like(first)] * (len(outputs) - 1)), signs)
        z, r = self._positions(i, order, timeline)
        D = (outputs[0] - outputs[1]) / r[0]
        images[1], signs[1] = D, -1.0
        coefficients.append(first / 2)
        if order == 3:
            images[2] = (D - (outputs[1] - outputs[2]) / r[1]) / (r[0] + r[1])
            images[1] = D + images[2] * r[0]
            _, phi_2, phi_3 = phi(z, 3)
            signs[1], signs[2] = 1.0, -1.0
            coefficients[1:] = [-timeline.alpha[i + 1] * z * phi_2, -timeline.alpha[i + 1] * z * phi_3]
        coefficients += [torch.zeros_like(first)] * (len(outputs) - order)
        return Basis(images, torch.stack(coefficients), signs)

    @staticmethod
    def _positions(i: int, order: int, timeline: DecoupledTimeline) -> tuple[Tensor, Tensor]:
        """-h and the ratios r_j of step i, newest first."""
        half_log_snr = timeline.half_log_snr[i + 1 - order : i + 2].flip(0)
        gaps = half_log_snr[:-1] - half_log_snr[1:]
        return -gaps[0], gaps[1:] / gaps[0]

    @staticmethod
    def _possible_order(i: int, outputs: int, timeline: DecoupledTimeline) -> int:
        if timeline.singular(i):
            return 1
        pure_noise = bool(timeline.alpha[0] == 0) and outputs == i + 1
        return min(outputs - pure_noise, 3)

    def _initial_c(self, timeline: DecoupledTimeline) -> Tensor:
        """Corrections c of the initialisation. Shape: (memory, steps)."""
        c = torch.zeros(self.memory, self.steps, dtype=torch.float64)
        for i in range(self.steps):
            outputs = tuple(torch.eye(min(i + 1, self.memory), dtype=torch.float64))
            basis = self._basis(i, outputs, timeline)
            wanted = self._wanted(i, len(outputs), basis, timeline)
            if self.use_theory_coef:
                c[: len(outputs), i] = basis.signs * (wanted - basis.coefficients)
            else:
                c[: len(outputs), i] = (wanted @ torch.stack(basis.images)) / basis.coefficients[0]
        return c

    def _wanted(self, i: int, outputs: int, basis: Basis, timeline: DecoupledTimeline) -> Tensor:
        """Coefficients that the initial step should have in its own basis."""
        possible = self._possible_order(i, outputs, timeline)
        base = DPMpp(grid=self.grid, path=self.path, order=min(self.memory, 3))
        order = base.order_at(i, possible)
        if self.init_from != "lower_order_final" or order >= possible:
            return basis.coefficients
        wanted = torch.zeros_like(basis.coefficients)
        wanted[0] = basis.coefficients[0]
        if order == 2:  # D_0 = d_1 - r_0 d_2
            _, r = self._positions(i, 3, timeline)
            wanted[1], wanted[2] = wanted[0] / 2, -wanted[0] / 2 * r[0]
        return wanted

    def _timeline(self, params: Params) -> DecoupledTimeline:
        start, end = self.ends
        mu = (1 - 2 * MARGIN) * torch.sigmoid(params["mu_logit"]) + MARGIN
        inner = (end + (start - end) * (1 - torch.cumprod(mu, dim=0))).flip(0)
        told = torch.cat([float64([start]), inner]) + params["t_couple"]
        if not isinstance(self.path, EDM) and bool((told <= 0).any()):
            i = int((told <= 0).nonzero()[0])
            raise ValueError(
                f"t_couple of {self.name} tells the network time {told[i].item():.3g} at step {i}, but times are above "
                "0; train with a smaller learning rate"
            )
        s = torch.cat([float64(self.grid[:1]), self._from_time(inner), float64(self.grid[-1:])])
        return DecoupledTimeline(self.path, s, self._from_time(told))

    def _to_logits(self, times: Tensor) -> Tensor:
        """Invert the stick-breaking for the inner times. Shape: (steps - 1,)."""
        start, end = self.ends
        product = 1 - (times[1:-1].flip(0) - end) / (start - end)
        mu = product / torch.cat([product.new_ones(1), product[:-1]])
        if bool(((mu <= MARGIN) | (mu >= 1 - MARGIN)).any()):
            raise ValueError(
                f"{self.name} cannot start from this grid: two of its levels are too close in time; use fewer"
            )
        return torch.logit((mu - MARGIN) / (1 - 2 * MARGIN))

    def _to_time(self, s: Tensor) -> Tensor:
        if not isinstance(self.path, EDM):
            return s
        return torch.sqrt(torch.log1p(s**2) / torch.log1p(s.new_tensor(self.grid[0]) ** 2))

    def _from_time(self, time: Tensor) -> Tensor:
        if not isinstance(self.path, EDM):
            return time
        return torch.sqrt(torch.expm1(time**2 * torch.log1p(time.new_tensor(self.grid[0]) ** 2)))
