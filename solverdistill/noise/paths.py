"""Noise levels and the paths a solver is written on.

A state at a noise level is ``x = alpha * x_0 + sigma * n`` with ``n`` unit normal. Levels are scale-free pairs
``(alpha, sigma)``: nothing is singular at pure noise (alpha = 0) or at clean data (sigma = 0). A *path* is a curve of
such pairs over its own unit ``s`` (decreasing ``s`` is decreasing noise):

========  ======================================================  ===============
path      alpha(s), sigma(s)                                      own unit s
========  ======================================================  ===============
edm       1, s                                                    sigma
flow      1 - t, t  with  t = shift s / (1 + (shift - 1) s)       time, 1 = noise
vp        exp(-B/2), sqrt(1 - exp(-B)), B = b0 s + (b1-b0) s^2/2  time, 1 = noise
discrete  log alpha piecewise linear over (i + 1) / M             time, 1 = noise
cosine    cos(pi s / 2), sin(pi s / 2)                            time, 1 = noise
========  ======================================================  ===============

Every path also has *straight coordinates*: a scale c(s) and a clock u(s) in which the state y = x / c obeys
``dy/du = (y - denoised) / u``, so that one Euler step is DDIM. They are y = x / alpha, u = sigma / alpha (EDM
coordinates) for every path but flow, which is straight in its own time already.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from solverdistill.noise.levels import Level, Scalar, float64


@dataclass(frozen=True)
class Path(ABC):
    """A noise path; all functions take and return float64 tensors of any shape and are differentiable."""

    name: ClassVar[str]

    @abstractmethod
    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha(s) and sigma(s)."""

    @abstractmethod
    def from_half_log_snr(self, half_log_snr: Scalar) -> Tensor:
        """Return s at a given log(alpha / sigma)."""

    def alpha(self, s: Scalar) -> Tensor:
        """Signal scale at s."""
        return self.alpha_sigma(float64(s))[0]

    def sigma(self, s: Scalar) -> Tensor:
        """Noise scale at s."""
        return self.alpha_sigma(float64(s))[1]

    def level(self, s: Scalar) -> Level:
        """The pair (alpha, sigma) at s."""
        return Level(*self.alpha_sigma(float64(s)))

    @abstractmethod
    def derivatives(self, s: Scalar) -> Level:
        """d alpha / ds and d sigma / ds."""

    def half_log_snr(self, s: Scalar) -> Tensor:
        """log(alpha / sigma) at s, DPM-Solver's lambda; infinite where alpha or sigma is 0."""
        alpha, sigma = self.alpha_sigma(float64(s))
        return torch.log(alpha) - torch.log(sigma)

    def clock(self, s: Scalar) -> Tensor:
        """Integration variable u(s) of the straight coordinates."""
        alpha, sigma = self.alpha_sigma(float64(s))
        return sigma / alpha

    def scale(self, s: Scalar) -> Tensor:
        """Scale c(s) with x = c(s) y between the path's states x and straight coordinates y."""
        return self.alpha(s)

    def from_clock(self, u: Scalar) -> Tensor:
        """Return s at a given clock value."""
        return self.from_half_log_snr(-torch.log(float64(u)))

    def straight(self, u: Scalar) -> Level:
        """Level of a state in straight coordinates at clock u."""
        u = float64(u)
        return Level(torch.ones_like(u), u)

    def clock_of(self, level: Level) -> Tensor:
        """Clock value at which the straight coordinates have the signal-to-noise ratio of `level`."""
        return level.sigma / level.alpha

    def initial_scale(self, s: Scalar) -> Tensor:
        """Factor that turns unit-normal noise into the initial state at s."""
        return self.sigma(s)

    def hyperparameters(self) -> dict[str, Any]:
        """JSON-able description; `make_path` inverts it."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class EDM(Path):
    """alpha = 1, sigma = s (Karras et al. 2022); the variance-exploding coordinates."""

    name: ClassVar[str] = "edm"

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(s), s

    def derivatives(self, s: Scalar) -> Level:
        s = float64(s)
        return Level(torch.zeros_like(s), torch.ones_like(s))

    def from_half_log_snr(self, half_log_snr: Scalar) -> Tensor:
        return torch.exp(-float64(half_log_snr))

    def from_clock(self, u: Scalar) -> Tensor:
        return float64(u)


@dataclass(frozen=True)
class Flow(Path):
    """alpha = 1 - t, sigma = t with t = shift s / (1 + (shift - 1) s): rectified flow, SD3's shifted time.

    This repository's time runs from noise (1) to data (0); libraries with the opposite direction are turned by their
    adapters.
    """

    shift: float = 1.0
    name: ClassVar[str] = "flow"

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        t = self.shift * s / (1 + (self.shift - 1) * s)
        return (1 - s) / (1 + (self.shift - 1) * s), t

    def derivatives(self, s: Scalar) -> Level:
        rate = self.shift / (1 + (self.shift - 1) * float64(s)) ** 2
        return Level(-rate, rate)

    def from_half_log_snr(self, half_log_snr: Scalar) -> Tensor:
        return self.from_clock(torch.sigmoid(-float64(half_log_snr)))

    def clock(self, s: Scalar) -> Tensor:
        return self.sigma(s)

    def from_clock(self, u: Scalar) -> Tensor:
        u = float64(u)
        return u / (self.shift - (self.shift - 1) * u)

    def scale(self, s: Scalar) -> Tensor:
        return torch.ones_like(float64(s))

    def straight(self, u: Scalar) -> Level:
        u = float64(u)
        return Level(1 - u, u)

    def clock_of(self, level: Level) -> Tensor:
        return level.sigma / (level.alpha + level.sigma)


@dataclass(frozen=True)
class _VariancePreserving(Path):
    """alpha^2 + sigma^2 = 1: the initial state is the unit noise itself."""

    def initial_scale(self, s: Scalar) -> Tensor:
        return self.level(s).hypot()

    @abstractmethod
    def log_alpha_rate(self, s: Tensor) -> Tensor:
        """d log alpha / ds."""

    def derivatives(self, s: Scalar) -> Level:
        s = float64(s)
        alpha, sigma = self.alpha_sigma(s)
        rate = self.log_alpha_rate(s)
        return Level(rate * alpha, -rate * alpha**2 / sigma)


@dataclass(frozen=True)
class VP(_VariancePreserving):
    """Linear-beta diffusion of Song et al. 2021, beta(s) = beta_0 + (beta_1 - beta_0) s."""

    beta_0: float = 0.1
    beta_1: float = 20.0
    name: ClassVar[str] = "vp"

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        integral = self.beta_0 * s + (self.beta_1 - self.beta_0) * s**2 / 2
        return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))

    def log_alpha_rate(self, s: Tensor) -> Tensor:
        return -(self.beta_0 + (self.beta_1 - self.beta_0) * s) / 2

    def from_half_log_snr(self, half_log_snr: Scalar) -> Tensor:
        integral = torch.nn.functional.softplus(-2 * float64(half_log_snr), threshold=40)
        root = torch.sqrt(self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * integral)
        return 2 * integral / (self.beta_0 + root)


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    """alpha = cos(pi s / 2), sigma = sin(pi s / 2)."""

    name: ClassVar[str] = "cosine"

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        # sin(pi (1 - s) / 2) is exactly 0 at s = 1, where cos(pi s / 2) rounds to 6e-17
        return torch.sin((1 - s) * (math.pi / 2)), torch.sin(s * (math.pi / 2))

    def log_alpha_rate(self, s: Tensor) -> Tensor:
        return -torch.tan(s * (math.pi / 2)) * (math.pi / 2)

    def derivatives(self, s: Scalar) -> Level:
        alpha, sigma = self.alpha_sigma(float64(s))
        return Level(-sigma * (math.pi / 2), alpha * (math.pi / 2))

    def from_half_log_snr(self, half_log_snr: Scalar) -> Tensor:
        return torch.atan(torch.exp(-float64(half_log_snr))) * (2 / math.pi)


@dataclass(frozen=True)
class Discrete(_VariancePreserving):
    """A trained discrete schedule made continuous: log alpha piecewise linear over s = (i + 1) / M.

    Given by `alphas_cumprod`, or by `beta_schedule` ("linear": betas evenly spaced, "scaled_linear": their square
    roots) from `beta_start` to `beta_end` in `steps` steps. The defaults are Stable Diffusion's. The end segments are
    extended past the ends (DPM-Solver's NoiseScheduleVP).
    """

    alphas_cumprod: tuple[float, ...] | None = None
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    name: ClassVar[str] = "discrete"

    def __post_init__(self) -> None:
        if self.beta_schedule not in ("linear", "scaled_linear"):
            raise ValueError(f"beta_schedule is {self.beta_schedule!r}; known: linear, scaled_linear")
        if self.alphas_cumprod is not None:
            object.__setattr__(self, "alphas_cumprod", tuple(float(a) for a in self.alphas_cumprod))
            object.__setattr__(self, "steps", len(self.alphas_cumprod))

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """Times (i + 1) / M and log alpha there. Shapes: (M,)."""
        with torch.inference_mode(False):
            return self._make_table()

    def _make_table(self) -> tuple[Tensor, Tensor]:
        if self.alphas_cumprod is not None:
            cumprod = float64(self.alphas_cumprod)
        else:
            power = 2 if self.beta_schedule == "scaled_linear" else 1
            ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
            cumprod = torch.cumprod(1 - torch.linspace(*ends, self.steps, dtype=torch.float64) ** power, dim=0)
        return torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps, 0.5 * torch.log(cumprod)

    def alpha_sigma(self, s: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = _interpolate(s, *self.table).clamp(max=0)  # the first segment ends at clean data, before s = 0
        return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))

    def log_alpha_rate(self, s: Tensor) -> Tensor:
        times, log_alphas = self.table
        right = torch.searchsorted(times, s.detach().contiguous()).clamp(1, len(times) - 1)
        return (log_alphas[right] - log_alphas[right - 1]) / (times[right] - times[right - 1])

    def from_half_log_snr(self, half_log_snr: Scalar) -> Tensor:
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * float64(half_log_snr), threshold=40)
        times, log_alphas = self.table
        return _interpolate(log_alpha, log_alphas.flip(0), times.flip(0))


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise-linear interpolation through increasing `xs`, extended by the end segments."""
    right = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


PATHS: dict[str, type[Path]] = {cls.name: cls for cls in (EDM, Flow, VP, Cosine, Discrete)}


def make_path(path: str | dict[str, Any] | Path) -> Path:
    """Return the path of a name ("edm"), of a description ({"name": "flow", "shift": 3.0}), or the path itself."""
    if isinstance(path, Path):
        return path
    options = {"name": path} if isinstance(path, str) else dict(path)
    name = options.pop("name", None)
    if name not in PATHS:
        raise ValueError(f"path {name!r} is unknown; known: {', '.join(PATHS)}")
    try:
        return PATHS[name](**options)
    except TypeError as error:
        raise ValueError(f"path {name!r} was given options it does not take: {error}") from None
