"""From a scheduler configuration to a noise path and the time that a network is told.

Of a diffusers scheduler only its training schedule and prediction type matter here; how it steps does not. Two kinds:

* *variance preserving*: M noise levels from betas. The level of integer timestep i is the path's at s = (i + 1) / M,
  and one in between gets the fractional timestep at which log alpha, linear between the entries, has its value.
  The networks embed timesteps as floats, so nothing is rounded; past the ends the end segments are extended.
* *flow*: x = (1 - t) x_0 + t n, the network being told t.

With zero terminal SNR (Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024,
Algorithm 1) the last alpha is 0 and its log infinite. As diffusers' Euler scheduler does, the table then ends at
alpha^2 = 2^-24 instead, and all noisier levels, pure noise included, are told the last timestep; the estimate
alpha x - sigma v itself is formed with the true level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from solverdistill.noise.paths import Discrete, Flow, Path
from solverdistill.support.facts import LARGEST, Facts
from solverdistill.support.limits import shown

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "denoised", "flow_prediction": "flow"}
LAST_ALPHA_SQUARE = 2.0**-24
CONSISTENCY = "estimates of a consistency model, with fresh noise in between"
NO_ODE = {  # schedulers whose steps are no steps of an ODE, and what they are instead
    "LCMScheduler": CONSISTENCY,
    "TCDScheduler": CONSISTENCY,
    "FlowMatchLCMScheduler": CONSISTENCY,
    "CMStochasticIterativeScheduler": CONSISTENCY,
    "SCMScheduler": CONSISTENCY,
    "HeliosDMDScheduler": "estimates of a distilled model, with fresh noise in between",
    "FlowMapEulerDiscreteScheduler": "jumps of a flow map, whose network is told two times",
    "AmusedScheduler": "draws of tokens",
    "VQDiffusionScheduler": "draws of tokens",
    "RePaintScheduler": "steps back and forth",
}
MAX_STEPS = 100_000  # training timesteps; a table has one entry for each


@dataclass
class Schedule:
    """A noise path, and what the network predicts and is told along it.

    Args:
        path: The training schedule.
        prediction: "eps", "v", "denoised" or "flow".
        steps: Number of training timesteps.
        zero_snr: The schedule ends at pure noise.
    """

    path: Path
    prediction: str
    steps: int = 1000
    zero_snr: bool = False
    _table: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        known = sorted(PREDICTIONS.values())
        if self.prediction not in known:
            raise ValueError(f"prediction {shown(self.prediction)} is unknown; known: {', '.join(known)}")
        if (self.prediction == "flow") != isinstance(self.path, Flow):
            raise ValueError(f"prediction {self.prediction!r} does not go with the scheduler's {self.path.name} path")
        if self.zero_snr and self.prediction == "eps":
            raise ValueError(
                "the scheduler has zero terminal SNR (rescale_betas_zero_snr), where an eps prediction has no denoised "
                "estimate; set model.prediction=v if that is what the network predicts"
            )

    @property
    def noise_range(self) -> tuple[float, float]:
        """From the noisiest trained level to the cleanest, in the path's own unit."""
        return (1.0, 0.0) if self.prediction == "flow" else (1.0, 1.0 / self.steps)

    def timestep(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Fractional timestep of a level of a variance-preserving schedule, in double precision where there is one.

        Raises:
            ValueError: alpha is 0, and the schedule does not end there.
        """
        table = self._table_on(alpha.device)
        alpha, sigma = alpha.to(table.dtype), sigma.to(table.dtype)
        if self.zero_snr:
            alpha = torch.maximum(alpha, sigma * torch.exp(table[-1]) / torch.sqrt(-torch.expm1(2 * table[-1])))
        else:
            _refuse_zero(alpha, self.prediction)
        log_alpha = -0.5 * torch.log1p((sigma / alpha) ** 2)
        right = torch.searchsorted(-table, -log_alpha.detach().contiguous()).clamp(1, self.steps - 1)
        before, after = table[right - 1], table[right]
        return right - 1 + (log_alpha - before) / (after - before)

    def _table_on(self, device: torch.device) -> Tensor:
        """log alpha of every timestep. Shape: (steps,)."""
        assert isinstance(self.path, Discrete)
        if self._table is None or self._table.device != device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._table = self.path.table[1].to(device, dtype)
        return self._table


def _refuse_zero(alpha: Tensor, prediction: str) -> None:
    if peek_interpreter_stack() is not None:
        return  # a function transform cannot look at values
    if alpha.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if bool((alpha == 0).any()):
        raise ValueError(
            f"this {prediction} network was told pure noise (alpha = 0), which its schedule does not reach; begin the "
            "noise levels where alpha is above 0"
        )


def make_schedule(
    config: Mapping[str, Any], prediction: str | None = None, image_tokens: int | None = None
) -> Schedule:
    """Read a scheduler configuration.

    Args:
        config: The contents of scheduler_config.json.
        prediction: Overrides the stated prediction type.
        image_tokens: Tokens of one image, on which a dynamic shift depends.
    Raises:
        ValueError: the schedule is of a kind that is not supported.
    """
    facts = Facts("scheduler_config.json", config)
    told = facts.word("prediction_type", "epsilon")
    stated, steps = PREDICTIONS.get(told, told), facts.count("num_train_timesteps", 1, MAX_STEPS, 1000)
    cls = facts.word("_class_name", "unnamed scheduler")
    if cls.startswith("FlowMatch"):
        return Schedule(Flow(_shift(facts, image_tokens)), prediction or "flow", steps)
    if facts.flag("use_flow_sigmas", False) or stated == "flow":
        return Schedule(Flow(_positive(facts.number("flow_shift", 1.0))), prediction or "flow", steps)
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(f"the noise schedule of {cls[:60]} is not supported; known: betas, and flow matching")
    steps, zero_snr = (
        facts.count("num_train_timesteps", 2, MAX_STEPS, 1000),
        facts.flag("rescale_betas_zero_snr", False),
    )
    return Schedule(_discrete(facts, steps, zero_snr), prediction or stated, steps, zero_snr)


def _shift(facts: Facts, image_tokens: int | None) -> float:
    """Shift of a flow path; a dynamic one is exp(mu), with mu linear in the number of image tokens."""
    if not facts.flag("use_dynamic_shifting", False):
        return _positive(facts.number("shift", 1.0))
    if image_tokens is None:
        raise ValueError("the scheduler shifts its times by the image's size, which this kind of model does not count")
    few, many = facts.number("base_image_seq_len", 256), facts.number("max_image_seq_len", 4096)
    low, high = facts.number("base_shift", 0.5), facts.number("max_shift", 1.15)
    mu = low + (high - low) * (image_tokens - few) / (many - few) if many > few else math.nan
    return _positive(mu if facts.word("time_shift_type", "exponential") == "linear" else math.exp(min(mu, 100.0)))


def _positive(shift: float) -> float:
    if not 0 < shift < LARGEST:
        raise ValueError(f"the scheduler shifts its times by {shift:.6g}, which must be a sensible number above 0")
    return shift


def _discrete(facts: Facts, steps: int, zero_snr: bool) -> Discrete:
    kind, trained = facts.word("beta_schedule", "linear"), facts.values.get("trained_betas")
    start, end = facts.number("beta_start", 0.0001), facts.number("beta_end", 0.02)
    if not (0 <= start < 1 and 0 < end < 1):
        raise ValueError(f"betas of the scheduler go from {start:g} to {end:g}; they lie between 0 and 1")
    shift = _positive(facts.number("snr_shift_scale", 1.0))
    if trained is not None:
        listed = trained.tolist() if hasattr(trained, "tolist") else trained  # an array, of a scheduler in memory
        betas = torch.tensor(Facts(facts.file, {"trained_betas": listed}).numbers("trained_betas"), dtype=torch.float64)
        if len(betas) != steps:
            raise ValueError(f"trained_betas of the scheduler are {len(betas)} numbers for {steps} timesteps")
        if not bool(((betas >= 0) & (betas <= 1)).all()):
            raise ValueError("trained_betas of the scheduler lie between 0 and 1, and some do not")
    elif kind in ("linear", "scaled_linear"):
        path = Discrete(None, kind, start, end, steps)
        if not zero_snr and shift == 1:
            return path
        cumprod = _shifted(torch.exp(2 * path.table[1]), shift)
        return Discrete(_zero_terminal_snr(cumprod) if zero_snr else tuple(cumprod.tolist()))
    elif kind == "squaredcos_cap_v2":
        angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * (math.pi / 2)
        square = torch.cos(angle) ** 2
        betas = (1 - square[1:] / square[:-1]).clamp(max=0.999)
    else:
        known = "linear, scaled_linear, squaredcos_cap_v2"
        raise ValueError(f"beta_schedule {kind[:60]!r} of the scheduler is not supported; known: {known}")
    cumprod = _shifted(torch.cumprod(1 - betas, dim=0), shift)
    return Discrete(_zero_terminal_snr(cumprod) if zero_snr else tuple(cumprod.tolist()))


def _shifted(cumprod: Tensor, shift: float) -> Tensor:
    """alpha^2 at a signal-to-noise ratio `shift` times smaller, as the schedulers of CogVideoX have it."""
    return cumprod / (shift + (1 - shift) * cumprod)


def _zero_terminal_snr(cumprod: Tensor) -> tuple[float, ...]:
    """Shift and scale sqrt(cumprod) so that it ends at 0, then put a small number there."""
    root = torch.sqrt(cumprod)
    square = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    square[-1] = min(LAST_ALPHA_SQUARE, float(square[-2]) / 4)
    return tuple(square.tolist())
