"""Grids: the decreasing noise levels of a solver, in the units of a path.

A `Grid` is a rule ("polynomial", rho 7, from 80 to 0.002 in 5 steps) that any path turns into numbers. With
u = i / steps:

============  ==================================================================================================
kind          levels
============  ==================================================================================================
polynomial    clock(s_i) = (start^(1/rho) + u (end^(1/rho) - start^(1/rho)))^rho           Karras et al. 2022, Eq. 5
logsnr        half_log_snr(s_i) linear in u                                                Lu et al. 2022
time_uniform  edm: t_i = (1 + u (eps^(1/rho) - 1))^rho, sigma(t) of the VP schedule that
              has sigma(1) = start and sigma(eps) = end; other paths: s_i^(1/rho) linear   Song et al. 2021
quadratic     time_uniform with rho = 2
discrete      time linear from 1 to `eps` on the `schedule` of a discrete-time network     Rombach et al. 2022
flow_shift    shift t / (1 + (shift - 1) t) with t linear, between the two ends            Esser et al. 2024
============  ==================================================================================================

`dpm_fast` is k-diffusion's: half_log_snr in even steps, of which all but the last are cut in three. The kinds of
`grids_in_use`, `karras` to `ays_sdxl`, go on to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solverdistill.noise.grids_in_use import (
    AYS,
    IN_USE,
    OF_TRAINING,
    Trained,
    between,
    continuous,
    levels_in_use,
    of_flow,
)
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import EDM, Discrete, Flow, Path, make_path
from solverdistill.support.type_checks import check_range

LARGEST_START = 80.0  # sigma / alpha that lower starts are counted from, where a grid begins at (almost) pure noise
PAST = 1.5  # a level on a path whose unit is a time that nothing but a mistake begins above
TIMES = 1000  # of a network on a path that does not say how many it has
KINDS = ("polynomial", "logsnr", "time_uniform", "quadratic", "discrete", "flow_shift", "dpm_fast", *IN_USE)


@dataclass(frozen=True)
class Grid:
    """A rule for `steps + 1` decreasing noise levels.

    Args:
        kind: One of `KINDS`.
        steps: Number of steps.
        start: Largest noise level, in the path's own unit.
        end: Smallest noise level, in the path's own unit; the kinds of `grids_in_use` go on to 0, and take the
            network's smallest level for an end of 0.
        rho: Exponent of `polynomial` and `time_uniform`; None takes 7 and 1.
        shift: Time shift of `flow_shift`, and of the times that a flow network was trained on.
        eps: Smallest time of the VP map of `time_uniform` and of `discrete`.
        schedule: Path (or its description) whose time `discrete` divides evenly, and whose levels a network was trained
            on; None on a discrete path is that path.
    """

    kind: str = "polynomial"
    steps: int = 5
    start: float = 80.0
    end: float = 0.002
    rho: float | None = None
    shift: float = 1.0
    eps: float = 1e-3
    schedule: Any = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"grid kind {self.kind!r} is unknown; known: {', '.join(KINDS)}")
        if self.steps < 1:
            raise ValueError(f"a grid needs at least 1 step, not {self.steps}")
        for name in ("rho", "shift", "eps"):
            check_range(f"{name} of a grid", getattr(self, name), above=0)
        if not self.start > self.end >= 0:
            raise ValueError(f"a grid goes down from start to end >= 0, not from {self.start} to {self.end}")

    def with_steps(self, steps: int) -> Grid:
        """The same rule with another number of steps."""
        return replace(self, steps=steps)

    def values(self, path: Path) -> Tensor:
        """Noise levels in the path's own unit, strictly decreasing. Shape: (steps + 1,)."""
        if self.kind in IN_USE:
            return self._in_use(path)
        u = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        values = getattr(self, f"_{self.kind}")(path, u)
        if self.kind != "discrete":  # its ends belong to the schedule
            values = torch.cat([float64([self.start]), values[1:-1], float64([self.end])])
        return values

    def _polynomial(self, path: Path, u: Tensor) -> Tensor:
        rho = 7.0 if self.rho is None else self.rho
        ends = path.clock(float64([self.start, self.end])) ** (1 / rho)
        return path.from_clock((ends[0] + u * (ends[1] - ends[0])) ** rho)

    def _logsnr(self, path: Path, u: Tensor) -> Tensor:
        ends = path.half_log_snr(float64([self.start, self.end]))
        if not bool(torch.isfinite(ends).all()):
            raise ValueError(f"a logsnr grid needs a finite log-SNR at both ends, not at {self.start} and {self.end}")
        return path.from_half_log_snr(ends[0] + u * (ends[1] - ends[0]))

    def _time_uniform(self, path: Path, u: Tensor, rho: float | None = None) -> Tensor:
        rho = rho or self.rho or 1.0
        if not isinstance(path, EDM):
            ends = self.start ** (1 / rho), self.end ** (1 / rho)
            return (ends[0] + u * (ends[1] - ends[0])) ** rho
        if self.end <= 0:
            raise ValueError("a time_uniform grid on the edm path needs end > 0")
        slope, intercept = vp_map(self.start, self.end, self.eps)
        t = (1 + u * (self.eps ** (1 / rho) - 1)) ** rho
        return torch.sqrt(torch.expm1(slope * t**2 / 2 + intercept * t))

    def _quadratic(self, path: Path, u: Tensor) -> Tensor:
        return self._time_uniform(path, u, rho=2.0)

    def _discrete(self, path: Path, u: Tensor) -> Tensor:
        schedule = path if self.schedule is None else make_path(self.schedule)
        if self.schedule is None and isinstance(path, EDM):
            raise ValueError("a discrete grid on the edm path needs `schedule`, the path of the network's own times")
        rho = self.rho or 1.0
        t = (1.0 + u * (self.eps ** (1 / rho) - 1.0)) ** rho
        return t if schedule == path else path.from_half_log_snr(schedule.half_log_snr(t))

    def _flow_shift(self, path: Path, u: Tensor) -> Tensor:
        # The ends are noise levels, hence shifted already: undone before and done again, so that any start is the top.
        ends = [end / (self.shift - (self.shift - 1) * end) for end in (self.start, self.end)]
        t = ends[0] + u * (ends[1] - ends[0])
        return self.shift * t / (1 + (self.shift - 1) * t)

    def _dpm_fast(self, path: Path, u: Tensor) -> Tensor:
        whole, rest = divmod(self.steps, 3)
        cuts = [3] * (whole - 1) + [2, 1] if rest == 0 else [3] * whole + [rest]
        shares = [k + j / cut for k, cut in enumerate(cuts) for j in range(cut)] + [len(cuts)]
        return self._logsnr(path, float64(shares) / len(cuts))

    def _in_use(self, path: Path) -> Tensor:
        levels = levels_in_use(self.kind, self._trained(path), self.steps)
        if self.kind in AYS and isinstance(path, Flow):
            levels = levels / (1 + levels)  # published as sigma / alpha
        return torch.cat([path.from_clock(levels[:-1]), levels[-1:]]) if levels[-1] == 0 else path.from_clock(levels)

    def _trained(self, path: Path) -> Trained:
        """The levels that a network on a path was trained on; where it has none of its own they begin at `start`."""
        largest, smallest = path.clock(float64([self.start, self.end])).tolist()
        if isinstance(path, EDM) and self.schedule is None:
            if smallest <= 0:
                raise ValueError(f"a {self.kind} grid on the edm path needs end > 0, the level before the final 0")
            return continuous(largest, smallest)
        if isinstance(path, Flow):
            found = of_flow(path.shift * self.shift, largest, smallest, TIMES)
        else:
            schedule = path if self.schedule is None else make_path(self.schedule)
            count = schedule.steps if isinstance(schedule, Discrete) else TIMES
            times = torch.arange(1, count + 1, dtype=torch.float64) / count
            found = between(schedule.clock(times), largest, smallest)
        ends = float(found.sigmas[-1]), float(found.sigmas[0])
        if self.kind in OF_TRAINING:
            return found._replace(largest=ends[0], smallest=ends[1])
        return found._replace(smallest=smallest or ends[1])


def lower_start(rule: Grid, path: Path, shift: float) -> Grid:
    """The same rule from a lower noise level, where log(alpha / sigma) is larger by `shift`.

    A solver on it takes its noise for the state at that level, and spends no evaluation on what lies above, where
    images are hardly more than their mean. The shift is counted from sigma / alpha = 80 where the rule begins above.

    Raises:
        ValueError: nothing would be left of the grid, or its levels belong to a discrete schedule.
    """
    if rule.kind == "discrete" or rule.kind in OF_TRAINING:
        raise ValueError(f"a {rule.kind} grid begins where its schedule does; take another kind to begin lower")
    top = path.half_log_snr(rule.start).clamp(min=-math.log(LARGEST_START))
    return replace(rule, start=float(path.from_half_log_snr(top + shift)))


def vp_map(sigma_max: float, sigma_min: float, eps: float = 1e-3) -> tuple[float, float]:
    """Slope and intercept of beta(t) for the VP schedule with sigma(1) = sigma_max and sigma(eps) = sigma_min.

    sigma(t) = sqrt(exp(slope t^2 / 2 + intercept t) - 1), in EDM units. Song et al. 2021 as used by Karras et al. 2022.
    """
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    slope = 2 * (low / eps - high) / (eps - 1)
    return slope, high - slope / 2


def grid_values(grid: Grid | Sequence[float] | Tensor, path: Path) -> tuple[float, ...]:
    """Turn a grid or a list of noise levels into checked numbers, strictly decreasing, in the path's own unit."""
    if isinstance(grid, Grid):
        _refuse_sigma(grid.start, path)
        values = tuple(grid.values(path).tolist())
    else:
        values = tuple(float(value) for value in (grid.tolist() if isinstance(grid, Tensor) else grid))
    if len(values) < 2:
        raise ValueError(f"a grid needs at least 2 noise levels, not {len(values)}")
    _refuse_sigma(values[0], path)
    for i, (a, b) in enumerate(zip(values, values[1:], strict=False)):
        if not (math.isfinite(a) and math.isfinite(b) and a > b):
            raise ValueError(f"grid is not strictly decreasing and finite at entry {i}: {a} then {b}")
    return values


def _refuse_sigma(level: float, path: Path) -> None:
    """Refuse a first level that can only be meant as sigma / alpha; learned levels may go slightly past an end."""
    if level > PAST and not isinstance(path, EDM):
        meant = float(path.from_half_log_snr(-math.log(level)))
        raise ValueError(
            f"level {level:g} is no time of the {path.name} path, whose levels go from 1 (noise) to 0; "
            f"where sigma / alpha is {level:g} its time is {meant:.6g}"
        )


def nested_grid(rule: Grid, path: Path, extra: int, inner: int = 3) -> tuple[float, ...]:
    """The teacher grid of EPD: `extra` more points of the same rule in every step, each interval cut again.

    The cut is a polynomial rho = 7 grid of `inner` points between the ends of the interval (`inner` = 2 cuts nothing).
    Every ((extra + 1) (inner - 1))-th point is a point of the student's grid.
    """
    coarse = rule.with_steps(rule.steps * (extra + 1)).values(path).tolist()
    values = coarse[:1]
    for start, end in zip(coarse, coarse[1:], strict=False):
        cut = Grid("polynomial", inner - 1, start, end)
        values += cut.values(path).tolist()[1:]
    return tuple(values)
