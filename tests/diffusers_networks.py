"""Analytic networks of the kinds that diffusers has, and the loop of its pipelines, shared by the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solverdistill.consumers.network_schedule import NetworkSchedule
from solverdistill.denoisers.base import per_sample
from solverdistill.teachers.mixture import toy_mixture

CONFIGS: dict[str, dict[str, Any]] = {
    "epsilon": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "v_prediction": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    },
    "sample": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "sample"},
    "flow_prediction": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}


class AnalyticNetwork(nn.Module):
    """The exact network of a Gaussian mixture at any timestep: ``network(x, timestep)``, as diffusers calls one.

    Timesteps become levels by the inverse of the conversion under test, written independently of it.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.mixture, self.calls = kind, toy_mixture(), 0
        self.schedule = NetworkSchedule.from_config(CONFIGS[kind])

    def level(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of a timestep, in the network's own scale, float64."""
        t = timestep.double()
        if self.kind == "flow_prediction":
            return 1 - t / 1000, t / 1000
        return self.schedule.schedule.path.alpha_sigma((t + 1) / 1000)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        self.calls += 1
        alpha, sigma = self.level(timestep.float().expand(len(x)))
        denoised = self.mixture(x.double(), alpha, sigma)
        if self.kind == "sample":
            return denoised.to(x.dtype)
        alpha, sigma = per_sample(alpha, x), per_sample(sigma, x)
        if self.kind == "flow_prediction":
            return ((x - denoised) / sigma).to(x.dtype)
        eps = (x - alpha * denoised) / sigma
        return (eps if self.kind == "epsilon" else alpha * eps - sigma * denoised).to(x.dtype)


class NetworkDenoiser(nn.Module):
    """A network of diffusers as this package's denoiser; the conversions in float32 or better.

    Args:
        network: ``network(x, timestep)`` -> output, guidance included.
        schedule: What it predicts, on which schedule.
    """

    def __init__(self, network: Any, schedule: NetworkSchedule) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        pairs = set(zip(alpha.tolist(), sigma.tolist(), strict=True))
        if len(pairs) > 1:  # a stage: one call of the network for each of its points
            rows = [(alpha == a) & (sigma == b) for a, b in pairs]
            parts = [self.forward(x[chosen], alpha[chosen], sigma[chosen]) for chosen in rows]
            return torch.cat(parts)[torch.cat([chosen.nonzero().flatten() for chosen in rows]).argsort()]
        ((a, b),) = pairs
        scale, timestep = self.schedule.scale(a, b), torch.tensor(self.schedule.timestep(a, b), dtype=torch.float32)
        x, timestep = x * scale, timestep.expand(len(x))
        alpha, sigma = (per_sample(value * scale, x) for value in (alpha, sigma))
        output = self.network(x, timestep).to(x.dtype)
        if self.schedule.prediction == "sample":
            return output
        if self.schedule.prediction == "epsilon":
            return (x - sigma * output) / alpha
        return x - sigma * output if self.schedule.is_flow else alpha * x - sigma * output


def run_loop(scheduler: Any, network: Any, noise: Tensor, calls_scale: bool = True, multiplies: bool = True) -> Tensor:
    """The denoising loop of a pipeline: SD's by default, SD3's without scaling, DDPM's without multiplying either."""
    scheduler.set_timesteps(scheduler.nfe, device="cpu")
    x = noise * scheduler.init_noise_sigma if multiplies else noise
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(x, timestep) if calls_scale else x
        x = scheduler.step(network(given, timestep), timestep, x, return_dict=False)[0]
    return x


def scale_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest deviation, relative to the largest entry."""
    assert ours.shape == theirs.shape and bool(theirs.isfinite().all())
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def assert_close_to_scale(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Elementwise, relative to the largest entry."""
    error = scale_error(ours, theirs)
    assert error <= tolerance, f"error {error:.2e} of the scale, allowed {tolerance:.0e}"
