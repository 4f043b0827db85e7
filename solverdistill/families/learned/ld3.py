"""LD3 (Tong et al., "Learning to Discretize Denoising Diffusion ODEs", ICLR 2025): a classical solver on learned times.

Every solver of the roster that reads a `Timeline` can be the base; it is called as it is, with two sequences of times:
where its steps go, and what the network is told. Times are the path's own unit ("time"), or half_log_snr on the edm
path ("lambda"), both between the ends of the grid::

    w = softmax(params1)
    time      t_k = end + (start - end) (w_1 + ... + w_{N-k}) / (w_1 + ... + w_N)
    lambda    l_k = l_0 + (l_N - l_0) (w_1 + ... + w_k) / (w_1 + ... + w_N)
    told      the same plus an offset that stays within delta, at inner points only

so w_0 cancels and equal entries are a grid uniform in the coordinate.

The network is handed the state as if it were at the told level. Solvers that extrapolate the denoised image take what
comes back; all others keep the network's own output (eps, or the flow velocity) and read it at their own level, see
`solverdistill.families.learned.decoupled`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, Params, State
from solverdistill.families.classical.adams import IPNDM, IPNDMV
from solverdistill.families.classical.deis import DEIS
from solverdistill.families.classical.dpmpp import DPMpp
from solverdistill.families.classical.exponential import ExponentialIntegrator
from solverdistill.families.classical.singlestep import DPMSolver2, Euler, Heun
from solverdistill.families.classical.unipc import UniPC
from solverdistill.families.learned.decoupled import Decoupled, DecoupledTimeline
from solverdistill.families.ode import OdeFamily
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM

BASES: dict[str, type[Family]] = {cls.name: cls for cls in (Euler, Heun, DPMSolver2, DPMpp, UniPC, DEIS, IPNDM, IPNDMV)}
WINDOWS = ("official", "smooth")
STARTS = ("grid", "paper")


@dataclass(frozen=True, kw_only=True)
class LD3(Family):
    """A classical solver with learned times and decoupled network times.

    Params: `params1` (N + 1) times and `params2` (N + 1) offsets of the told times, in the unit of the coordinate.
    Starts as the base solver on the grid.

    Args:
        base: Name of a classical family.
        order: Its order (`dpmpp`, `unipc`) or largest order (`ipndm`, `ipndm_v`, `deis`); None is its own default.
        variant: "bh1" or "bh2" of `unipc`; None is its own default.
        predict_x0: Extrapolate the denoised image (`dpmpp`, `unipc`); otherwise the noise.
        init_from: "grid": the grid's times; "paper": uniform in the coordinate.
        win_rate: Largest offset as a fraction of the smallest gap.
        window: "official" clips the offsets at delta = win_rate times the smallest gap, of the times in "time" mode and
            of params1 itself in "lambda" mode; no gradient passes beyond or through delta. "smooth" takes the gaps of
            the coordinate in both modes and bounds by delta tanh(params2 / delta), so that every offset keeps a
            gradient.
    Reference: Tong et al., ICLR 2025, Eq. 7-9 and Alg. 1. arXiv 2405.15506
    """

    base: str = "dpmpp"
    order: int | None = None
    variant: str | None = None
    predict_x0: bool = True
    init_from: str = "grid"
    win_rate: float = 0.5
    window: str = "official"
    name: ClassVar[str] = "ld3"

    def __post_init__(self) -> None:
        for option, value, known in (
            ("base", self.base, tuple(BASES)),
            ("window", self.window, WINDOWS),
            ("init_from", self.init_from, STARTS),
        ):
            if value not in known:
                raise ValueError(f"{option} of {self.name} is {value!r}; known: {', '.join(known)}")
        if not 0 <= self.win_rate < 1:
            raise ValueError(
                f"win_rate of {self.name} must lie in [0, 1), not {self.win_rate}: told times may not cross"
            )
        if isinstance(self.path, EDM) and self.grid[-1] <= 0:
            raise ValueError(f"{self.name} learns log-SNR on the edm path: the grid must end above 0")
        _ = self.solver  # refuses options that the base does not have

    @cached_property
    def solver(self) -> Family:
        """The base solver on the fixed grid."""
        cls = BASES[self.base]
        known = {f.name for f in fields(cls)}
        options: dict[str, Any] = {"predict_x0": self.predict_x0} if "predict_x0" in known else {}
        for names, value in ((("order", "max_order"), self.order), (("variant",), self.variant)):
            if value is None:
                continue
            name = next((name for name in names if name in known), None)
            if name is None:
                raise ValueError(f"base {self.base!r} of {self.name} has no {names[0]}; leave it null")
            options[name] = value
        return cls(grid=self.grid, path=self.path, **options)

    @property
    def takes_denoised(self) -> bool:
        """Whether the base extrapolates the denoised image, and so takes what the network says at the told level."""
        return isinstance(self.solver, ExponentialIntegrator) and self.solver.predict_x0

    def init(self, seed: int = 0) -> Params:
        params1 = torch.ones(self.steps + 1, dtype=torch.float64)
        if self.init_from == "grid":
            gaps = self._to_coordinate(float64(self.grid)).diff().abs()
            gaps = gaps if isinstance(self.path, EDM) else gaps.flip(0)
            params1[1:] += torch.log(gaps / gaps.mean())
        return {"params1": params1, "params2": torch.zeros_like(params1)}

    def prepare(self, params: Params) -> DecoupledTimeline:
        times = self._times(params["params1"])
        inner = times + self._offsets(params["params2"][1:-1], params["params1"], times)
        told = [self._from_coordinate(value) for value in (times, inner)]
        ends = float64(self.grid[:1]), float64(self.grid[-1:])
        s, told = (torch.cat([ends[0], value, ends[1]]) for value in told)
        return DecoupledTimeline(self.path, s, told)

    def initial_scale(self, values: DecoupledTimeline) -> Tensor:
        return self.solver.initial_scale(values)

    def step(
        self, i: int, x: State, history: History, denoise: Evaluator, values: DecoupledTimeline
    ) -> tuple[State, History]:
        evaluate = denoise if self.takes_denoised else Decoupled(denoise, self.path)
        if not isinstance(self.solver, OdeFamily):
            return self.solver.step(i, x, history, evaluate, values)
        given = self.solver.scales(values)  # may be those of the fixed grid
        x, history = self.solver.step(i, x * (given[i] / values.scale[i]), history, evaluate, values)
        return x * (values.scale[i + 1] / given[i + 1]), history

    def _times(self, params1: Tensor) -> Tensor:
        """Inner times in the coordinate. Shape: (steps - 1,)."""
        start, end = self._to_coordinate(float64(self.grid))[[0, -1]]
        shares = torch.cumsum(torch.softmax(params1, dim=0)[1:], dim=0)
        shares = (shares / shares[-1])[:-1]
        return start + (end - start) * shares if isinstance(self.path, EDM) else (end + (start - end) * shares).flip(0)

    def _offsets(self, raw: Tensor, params1: Tensor, times: Tensor) -> Tensor:
        """Offsets of the told times, within the window. Shape: (steps - 1,)."""
        start, end = self._to_coordinate(float64(self.grid))[[0, -1]]
        coordinate = torch.cat([start[None], times, end[None]])
        official = self.window == "official"
        gaps = (params1 if official and isinstance(self.path, EDM) else coordinate).detach().diff().abs()
        delta = self.win_rate * gaps.min()
        if official:
            return torch.clip(raw, -delta, delta)
        return delta * torch.tanh(raw / delta) if bool(delta > 0) else torch.zeros_like(raw)

    def _to_coordinate(self, s: Tensor) -> Tensor:
        return self.path.half_log_snr(s) if isinstance(self.path, EDM) else s

    def _from_coordinate(self, value: Tensor) -> Tensor:
        return self.path.from_half_log_snr(value) if isinstance(self.path, EDM) else value
