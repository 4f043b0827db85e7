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
            raise ValueError(f"prediction {self.prediction!r} is unknown; known: {', '.join(known)}")
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
    stated = PREDICTIONS.get(config.get("prediction_type", "epsilon"), config.get("prediction_type"))
    steps = int(config.get("num_train_timesteps", 1000))
    cls = str(config.get("_class_name", "unnamed scheduler"))
    if cls.startswith("FlowMatch"):
        return Schedule(Flow(_shift(config, image_tokens)), prediction or "flow", steps)
    if config.get("use_flow_sigmas") or stated == "flow":
        return Schedule(Flow(float(config.get("flow_shift", 1.0))), prediction or "flow", steps)
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(f"the noise schedule of {cls} is not supported; known: betas, and flow matching")
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    return Schedule(_discrete(config, steps, zero_snr), prediction or str(stated), steps, zero_snr)


def _shift(config: Mapping[str, Any], image_tokens: int | None) -> float:
    """Shift of a flow path; a dynamic one is exp(mu), with mu linear in the number of image tokens."""
    if not config.get("use_dynamic_shifting", False):
        return float(config.get("shift", 1.0))
    if image_tokens is None:
        raise ValueError("the scheduler shifts its times by the image's size, which this kind of model does not count")
    few, many = float(config.get("base_image_seq_len", 256)), float(config.get("max_image_seq_len", 4096))
    low, high = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    mu = low + (high - low) * (image_tokens - few) / (many - few)
    return mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)


def _discrete(config: Mapping[str, Any], steps: int, zero_snr: bool) -> Discrete:
    kind, trained = config.get("beta_schedule", "linear"), config.get("trained_betas")
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    shift = float(config.get("snr_shift_scale", 1.0))
    if trained is not None:
        betas = torch.tensor([float(beta) for beta in trained], dtype=torch.float64)
        if len(betas) != steps:
            raise ValueError(f"trained_betas of the scheduler are {len(betas)} numbers for {steps} timesteps")
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
        raise ValueError(
            f"beta_schedule {kind!r} of the scheduler is not supported; known: linear, scaled_linear, squaredcos_cap_v2"
        )
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
