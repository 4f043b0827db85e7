"""The level that a network was trained at, found from any scale of (alpha, sigma), and what its output means there.

A network sees *native* states x' = a x_0 + s n on its own noise schedule. A denoiser is asked at levels of any scale,
so a state is first divided by a norm that makes its level native:

=============  ==================  =========================================================
schedule       norm                native time, from r = sigma / alpha
=============  ==================  =========================================================
edm            alpha               r
flow           alpha + sigma       r / (1 + r), the share of noise whatever the shift
vp             hypot               solves integral of beta = log(1 + r^2)
cosine         hypot               2/pi arctan(r)
discrete       hypot               log alpha = -log(1 + r^2) / 2, interpolated in the table
=============  ==================  =========================================================

The output y of a network is an affine function of the clean image, so that denoised = P x' + Q y:

============  =====================================  ========================
prediction    y                                      P, Q
============  =====================================  ========================
denoised      x_0                                    0, 1
eps           n                                      1 / a, -s / a
v             a n - s x_0, where a^2 + s^2 = 1       a, -s
flow          a' x_0 + s' n, derivatives in time     s' / w, -s / w, w = a s' - s a'
============  =====================================  ========================

Everything runs in float64 on the device of the levels, is differentiable, and extrapolates instead of clamping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solverdistill.noise.paths import EDM, VP, Cosine, Discrete, Flow, Path, make_path

PREDICTIONS = ("eps", "v", "flow", "denoised")
MAX_BETA = 0.999
NOISE_RANGES = {"edm": (80.0, 0.002), "flow": (1.0, 0.001), "vp": (1.0, 0.001), "cosine": (0.99, 0.001)}


def make_schedule(spec: str | Mapping[str, Any] | Path) -> Path:
    """The path of a noise schedule: what `make_path` takes, and two more forms of `discrete`.

    {"name": "discrete", "betas": [...]} and {"name": "discrete", "beta_schedule": "cosine", "steps": M}, the schedule
    of Nichol and Dhariwal 2021, Eq. 17: abar_i = f(i + 1) / f(0), f(i) = cos^2(pi/2 (i / M + 0.008) / 1.008), betas at
    most 0.999.

    Raises:
        ValueError: the schedule is unknown, or its table does not fall strictly from below 1 to above 0.
    """
    if isinstance(spec, Path):
        return spec
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if options.get("name") == "discrete":
        options = _discrete_options(options)
    path = make_path(options)
    if isinstance(path, Discrete):
        table = path.table[1]
        falling = bool((table[1:] < table[:-1]).all()) and bool(torch.isfinite(table).all()) and float(table[0]) < 0
        if len(table) < 2 or not falling:
            raise ValueError(
                "noise_schedule: alphas_cumprod must fall strictly from below 1 to above 0; leave out an entry at pure "
                "noise or give the schedule without zero terminal SNR"
            )
    return path


def usual_range(path: Path) -> tuple[float, float]:
    """Largest and smallest level that networks on a schedule are usually sampled between, in its own unit."""
    return (1.0, 1 / path.steps) if isinstance(path, Discrete) else NOISE_RANGES[path.name]


def choose_range(
    path: Path, noise_range: Sequence[float] | None, as_sigma: Sequence[float] | None
) -> tuple[float, float]:
    """The noise range that is stated, in the path's own unit, or the usual one.

    Args:
        path: The noise schedule.
        noise_range: Largest and smallest level in its own unit.
        as_sigma: Largest and smallest sigma / alpha, instead.
    Raises:
        ValueError: both are given, one is not two decreasing numbers, or the schedule has no such levels.
    """
    if noise_range is None and as_sigma is None:
        return usual_range(path)
    if noise_range is not None and as_sigma is not None:
        raise ValueError("model.noise_range and model.noise_range_sigma say the same; give one of them")
    name, given = ("noise_range", noise_range) if as_sigma is None else ("noise_range_sigma", as_sigma)
    levels = [float(level) for level in given or ()]
    if len(levels) != 2 or not levels[0] > levels[1] >= 0:
        raise ValueError(f"model.{name} {list(given or ())} must be two numbers, the largest level and the smallest")
    start, end = (
        levels if as_sigma is None else (float(path.from_half_log_snr(-math.log(s))) if s else 0.0 for s in levels)
    )
    if isinstance(path, EDM) or start <= 1 + 1e-6:
        return start, end
    if as_sigma is not None:
        most = math.exp(-float(path.half_log_snr(1.0)))
        raise ValueError(f"model.noise_range_sigma begins at {levels[0]:g}, and the {path.name} schedule at {most:.6g}")
    raise ValueError(
        f"model.noise_range {levels} begins at {start:g}, but levels of the {path.name} schedule are times between 1 "
        f"(noise) and 0; for sigma / alpha say model.noise_range_sigma=[{levels[0]:g},{levels[1]:g}]"
    )


def _discrete_options(options: dict[str, Any]) -> dict[str, Any]:
    betas, kind = options.pop("betas", None), options.get("beta_schedule")
    if kind == "cosine" and betas is None:
        steps = int(options.get("steps", 1000))
        angles = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * (math.pi / 2)
        decay = torch.cos(angles) ** 2
        betas = (1 - decay[1:] / decay[:-1]).clamp(max=MAX_BETA).tolist()
        options = {"name": "discrete"}
    if betas is None:
        return options
    if not isinstance(betas, Sequence) or isinstance(betas, str):
        raise ValueError(f"noise_schedule: betas must be a list of numbers, not {betas!r}")
    return {**options, "alphas_cumprod": torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), dim=0).tolist()}


class NativeLevels(nn.Module):
    """Native levels, times and output coefficients of one noise schedule.

    Args:
        path: The schedule.
    """

    log_alphas: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        table = path.table[1] if isinstance(path, Discrete) else torch.empty(0, dtype=torch.float64)
        self.register_buffer("log_alphas", table.clone(), persistent=False)  # follows the device, not the fingerprint

    @property
    def count(self) -> int:
        """Number of levels of a discrete schedule, 0 for a continuous one."""
        return len(self.log_alphas)

    def norm(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What a state at (alpha, sigma) is divided by to become native."""
        if isinstance(self.path, EDM):
            return alpha
        return alpha + sigma if isinstance(self.path, Flow) else torch.hypot(alpha, sigma)

    def time(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Time of the schedule: sigma (edm), share of noise (flow), s in [0, 1] (others; (i + 1) / M if discrete)."""
        if isinstance(self.path, EDM):
            return sigma / alpha
        if isinstance(self.path, Flow):
            return sigma / (alpha + sigma)
        if isinstance(self.path, Cosine):
            return torch.atan2(sigma, alpha) * (2 / math.pi)
        integral = torch.log1p((sigma / alpha) ** 2)
        if isinstance(self.path, VP):
            first, growth = self.path.beta_0, self.path.beta_1 - self.path.beta_0
            return 2 * integral / (first + torch.sqrt(first**2 + 2 * growth * integral))
        return (self._index(-integral / 2) + 1) / self.count

    def index(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Fractional index 0 .. M - 1 of a discrete schedule, beyond them past its ends."""
        return self._index(-torch.log1p((sigma / alpha) ** 2) / 2)

    def nearest(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Nearest existing index of a discrete schedule, distances being those of indices. Integers."""
        return self.index(alpha, sigma).detach().round().clamp(0, self.count - 1).long()

    def at_index(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Native level of integer indices of a discrete schedule."""
        log_alpha = self.log_alphas[index]
        return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))

    def _index(self, log_alpha: Tensor) -> Tensor:
        """Piecewise-linear inverse of the table of log alpha, extended by its end segments."""
        # A count of comparisons instead of a search: it works under vmap and in compiled graphs.
        left = (log_alpha.detach()[..., None] <= self.log_alphas).sum(-1).clamp(1, self.count - 1) - 1
        start, end = self.log_alphas[left], self.log_alphas[left + 1]
        return left + (log_alpha - start) / (end - start)

    def output(self, prediction: str, alpha: Tensor, sigma: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
        """P and Q of denoised = P x + Q y, for a state x at (alpha, sigma) of any scale and the network's output y.

        Args:
            prediction: One of `PREDICTIONS`.
            alpha: Signal scale. Shape: (batch,).
            sigma: Noise scale. Shape: (batch,).
            backwards: The time in which a flow network's velocity is a derivative runs from noise to data.
        """
        norm = self.norm(alpha, sigma)
        a, s = alpha / norm, sigma / norm
        if prediction == "denoised":
            return torch.zeros_like(a), torch.ones_like(a)
        if prediction == "eps":
            return 1 / alpha, -s / a
        if prediction == "v":
            size = torch.hypot(a, s)
            return a / size**2 / norm, -s / size
        rate_a, rate_s = self._rates(a, s, alpha, sigma)
        width = a * rate_s - s * rate_a
        return rate_s / width / norm, (s if backwards else -s) / width

    def _rates(self, a: Tensor, s: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the native level in the schedule's time."""
        one = torch.ones_like(a)
        if isinstance(self.path, EDM):
            return 0 * one, one
        if isinstance(self.path, Flow):
            return -one, one
        if isinstance(self.path, Cosine):
            return -s * (math.pi / 2), a * (math.pi / 2)
        assert isinstance(self.path, VP)
        rate = self.path.log_alpha_rate(self.time(alpha, sigma))
        return rate * a, -rate * a**2 / s
