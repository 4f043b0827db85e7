"""What a pipeline's scheduler calls a noise level, and what it tells the network there.

Read from the scheduler's configuration and from the times and levels of a few steps of the pipeline's own. With
u = sigma / (alpha + sigma) and M training timesteps, flow models are told

    M u                          usually
    M u / (k - (k - 1) u)        where a pipeline shifts its levels by k and tells its network unshifted times
    M (1 - u)                    where time runs from noise to data, and the output is x_0 - n

and all others the fractional timestep of their level (`teachers.diffusers.schedule`), or log(sigma / alpha) / 4 where
timesteps are continuous (Stable Video Diffusion). What is told is compared with what the pipeline's own steps tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from solverdistill.denoisers.base import per_sample
from solverdistill.noise.paths import Discrete, Flow
from solverdistill.teachers.diffusers.pipelines.watching import Run
from solverdistill.teachers.diffusers.schedule import LAST_ALPHA_SQUARE, NO_ODE, PREDICTIONS, Schedule, make_schedule

FIRST_ORDER = ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler", "CogVideoXDDIMScheduler")  # whose step is Euler's


@dataclass(frozen=True)
class Convention:
    """Between (alpha, sigma) and what a pipeline's network is told and answers.

    Args:
        schedule: Path, prediction type and number of training timesteps.
        told_shift: k of a network that is told unshifted times.
        reversed: Time runs from noise to data.
        continuous: Time is log(sigma / alpha) / 4.
    """

    schedule: Schedule
    told_shift: float = 1.0
    reversed: bool = False
    continuous: bool = False

    @property
    def is_flow(self) -> bool:
        return self.schedule.prediction == "flow"

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Size of a level, by which states are divided for the network. Shape: (batch,)."""
        return alpha + sigma if self.is_flow else torch.hypot(alpha, sigma)

    def told(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Entry of `timesteps` and the scheduler's own noise level. Shape: (batch,) each."""
        if self.continuous:
            return 0.25 * torch.log(sigma / alpha), sigma / alpha
        if not self.is_flow:
            return self.schedule.timestep(alpha, sigma), sigma / alpha
        u = sigma / (alpha + sigma)
        if self.reversed:
            return self.schedule.steps * (1 - u), 1 - u
        k = self.told_shift
        return self.schedule.steps * (u if k == 1 else u / (k - (k - 1) * u)), u

    def denoised(self, output: Tensor, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The denoised estimate of an output at a state in the network's own scale; levels in that scale, too."""
        a, s = per_sample(alpha, z), per_sample(sigma, z)
        prediction = self.schedule.prediction
        if prediction == "denoised":
            return output
        if prediction == "eps":
            return (z - s * output) / a
        if prediction == "flow":
            return z + s * output if self.reversed else z - s * output
        return a * z - s * output

    def description(self) -> dict[str, Any]:
        """What differs from the usual, JSON-able."""
        flags = {"reversed_time": self.reversed, "continuous_time": self.continuous, "zero_snr": self.schedule.zero_snr}
        facts: dict[str, Any] = {name: True for name, value in flags.items() if value}
        return facts if self.told_shift == 1 else {"told_shift": self.told_shift, **facts}


def read_convention(scheduler: Any, run: Run) -> Convention:
    """Read a scheduler's configuration and its work.

    Raises:
        ValueError: a kind of scheduler that is not known.
    """
    config, name = dict(scheduler.config), type(scheduler).__name__
    if name in NO_ODE:
        raise ValueError(f"the steps of {name} are no steps of an ODE but {NO_ODE[name]}; there is none to distil")
    if "sigma_data" in config:
        raise ValueError(f"{name} preconditions its network as EDM does, which pipelines as teachers do not know yet")
    steps = int(config.get("num_train_timesteps", 1000))
    predicts = config.get("prediction_type")
    if not (name.startswith("FlowMatch") or config.get("use_flow_sigmas") or predicts == "flow_prediction"):
        continuous = config.get("timestep_type") == "continuous" and predicts == "v_prediction"
        convention = Convention(_variance_preserving(scheduler, config, name), continuous=continuous)
        return _check_times(convention, name, run)
    times = [step.time / steps for step in run.of_first_stream()]
    sigmas = run.diary.sigmas[: len(times)]
    schedule = Schedule(Flow(_shift(scheduler, run.diary.mu)), "flow", steps)
    if len(sigmas) < len(times) or not all(-1e-6 <= sigma <= 1 + 1e-6 for sigma in sigmas):
        raise ValueError(
            f"{name} has no noise level between 0 and 1 for every step of this pipeline, so that nothing says what its "
            "network is told"
        )
    if config.get("invert_sigmas"):
        return Convention(schedule, reversed=True)
    if all(abs(time - sigma) <= 1.5 / steps for time, sigma in zip(times, sigmas, strict=True)):
        return Convention(schedule)
    return Convention(schedule, told_shift=_told_shift(name, times, sigmas, 1 / steps))


def _check_times(convention: Convention, name: str, run: Run) -> Convention:
    """Compare what is told with what the pipeline's own steps tell, where its scheduler says at which levels they are.

    Raises:
        ValueError: they differ by more than the rounding to whole timesteps.
    """
    pairs = [(step.time, sigma) for step, sigma in zip(run.of_first_stream(), run.diary.sigmas, strict=False)]
    for time, sigma in pairs:
        if not 0 < sigma < math.inf:
            continue
        told = float(convention.told(*(torch.tensor([v], dtype=torch.float64) for v in (1.0, sigma)))[0])
        if abs(told - time) > (1e-3 * max(1.0, abs(time)) if convention.continuous else 1.5):
            raise ValueError(
                f"{name} tells its network {time:.6g} at sigma {sigma:.6g}, where its noise schedule says {told:.6g}; "
                "what it tells is not known here"
            )
    return convention


def check_steps(convention: Convention, scheduler: Any, run: Run, tolerance: float) -> None:
    """Compare the scheduler's own first step with the one that follows from the denoised estimate.

    Raises:
        ValueError: they differ, so that the output is not read as it is meant.
    """
    name, stochastic = type(scheduler).__name__, scheduler.config.get("stochastic_sampling", False)
    if name not in FIRST_ORDER or stochastic or len(run.of_first_stream()) < 2:
        return
    first, levels = run.diary.steps[0], [_level(convention, run, k) for k in (0, 1)]
    (a, s), (a_next, s_next) = ([value.reshape(1) for value in level] for level in levels)
    z = first.given.double().flatten()[None]
    denoised = convention.denoised(first.output.double().flatten()[None][:, : z.shape[1]], z, a, s)
    after = a_next * denoised + s_next * (z - a * denoised) / s
    own = first.after.double().flatten()[None]
    if own.shape == after.shape and float((after - own).abs().max()) > tolerance * float(own.abs().max()):
        raise ValueError(
            f"the first step of {name} is not the Euler step of a {convention.schedule.prediction} network: its output "
            "is read in a way that is not known here"
        )


def _level(convention: Convention, run: Run, k: int) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a step of the pipeline's own, float64, shape ()."""
    if convention.is_flow:
        sigma = torch.tensor(run.diary.sigmas[k], dtype=torch.float64)
        return (sigma, 1 - sigma) if convention.reversed else (1 - sigma, sigma)
    time = torch.tensor(run.of_first_stream()[k].time, dtype=torch.float64)
    if convention.continuous:
        sigma = torch.exp(4 * time)
        return 1 / torch.hypot(sigma, torch.ones_like(sigma)), sigma / torch.hypot(sigma, torch.ones_like(sigma))
    return convention.schedule.path.alpha_sigma((time + 1) / convention.schedule.steps)


def _told_shift(name: str, times: Sequence[float], sigmas: Sequence[float], rounding: float) -> float:
    """k of sigma = k t / (1 + (k - 1) t) at every step.

    Raises:
        ValueError: there is no such number.
    """
    inner = [(t, s) for t, s in zip(times, sigmas, strict=True) if rounding < t < 1 - rounding and 0 < s < 1]
    ratios = [s * (1 - t) / (t * (1 - s)) for t, s in inner]
    # a time that is rounded to one of the timesteps moves the ratio by about its own share
    slack = [2 * rounding / (t * (1 - t)) + 1e-3 for t, _ in inner]
    middle = sorted(ratios)[len(ratios) // 2] if ratios else math.nan
    if not ratios or any(abs(r / middle - 1) > e for r, e in zip(ratios, slack, strict=True)):
        pairs = ", ".join(f"{s:.4g} -> {t:.4g}" for t, s in zip(times, sigmas, strict=True))
        raise ValueError(
            f"what {name} tells its network is no function of the noise level that is known here ({pairs})"
        )
    if not all(a > b for a, b in pairwise(sigmas)):
        raise ValueError(f"the noise levels of {name} do not fall from step to step")
    return middle


def _shift(scheduler: Any, mu: float | None) -> float:
    """The shift of a flow's levels, which decides how grids on its path are spaced."""
    config: Mapping[str, Any] = scheduler.config
    if config.get("use_dynamic_shifting") and mu is not None:
        shift = mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)
    else:
        shift = float(config.get("shift", config.get("flow_shift", 1.0)) or 1.0)
    return shift if shift > 0 else 1.0


def _variance_preserving(scheduler: Any, config: dict[str, Any], name: str) -> Schedule:
    """The schedule of betas, or that of the scheduler's own table where it changes these."""
    predicts = config.get("prediction_type", "epsilon")
    table = getattr(scheduler, "alphas_cumprod", None)
    if predicts not in PREDICTIONS or not isinstance(table, Tensor):
        raise ValueError(f"{name} (prediction_type {predicts!r}) has no schedule that is known here")
    cumprod = table.detach().cpu().double()
    zero_snr = bool(cumprod[-1] < 1e-7)
    try:
        schedule = make_schedule({**config, "_class_name": name})
        assert isinstance(schedule.path, Discrete)
        if torch.allclose(torch.exp(2 * schedule.path.table[1]), cumprod, rtol=1e-3, atol=1e-6):
            return schedule
    except ValueError:
        pass
    if zero_snr:
        cumprod[-1] = min(LAST_ALPHA_SQUARE, float(cumprod[-2]) / 4)
    return Schedule(Discrete(tuple(cumprod.tolist())), PREDICTIONS[predicts], len(cumprod), zero_snr)
