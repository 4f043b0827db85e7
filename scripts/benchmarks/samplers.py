"""Other people's samplers as tables: schedulers of diffusers, and the samplers of a ComfyUI checkout.

Each is probed, and then both run on the same random images under the same network: the sampler's own loop and the
table. The network is told the timestep or sigma that the sampler tells it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from solverdistill import sample
from solverdistill.importers import Imported, probe
from solverdistill.importers.probed_functions import StandIn
from solverdistill.importers.probed_schedulers import network_of
from solverdistill.support.files import write_atomically

from .machine import command, describe

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SETUPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("EulerDiscreteScheduler", BETAS),
    ("EulerDiscreteScheduler", {**BETAS, "prediction_type": "v_prediction"}),
    ("HeunDiscreteScheduler", BETAS),
    ("LMSDiscreteScheduler", BETAS),
    ("PNDMScheduler", {**BETAS, "skip_prk_steps": True}),
    ("PNDMScheduler", BETAS),
    ("KDPM2DiscreteScheduler", BETAS),
    ("DDIMScheduler", {**BETAS, "clip_sample": False}),
    ("DDIMScheduler", {**BETAS, **ZERO_SNR, "clip_sample": False, "prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", BETAS),
    ("DPMSolverMultistepScheduler", {**BETAS, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {**BETAS, "solver_order": 3}),
    ("DPMSolverMultistepScheduler", FLOW),
    ("DPMSolverSinglestepScheduler", BETAS),
    ("DEISMultistepScheduler", BETAS),
    ("DEISMultistepScheduler", FLOW),
    ("UniPCMultistepScheduler", BETAS),
    ("UniPCMultistepScheduler", FLOW),
    ("IPNDMScheduler", {}),
    ("SASolverScheduler", {**BETAS, "tau_func": lambda _: 0.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("CogVideoXDDIMScheduler", {"prediction_type": "v_prediction"}),
    ("DDIMScheduler", {**BETAS, "clip_sample": True}),
    ("DPMSolverMultistepScheduler", {**BETAS, "thresholding": True}),
    ("DPMSolverMultistepScheduler", {**BETAS, "algorithm_type": "sde-dpmsolver++"}),
    ("SASolverScheduler", BETAS),
    ("EulerAncestralDiscreteScheduler", BETAS),
    ("DDPMScheduler", BETAS),
    ("LCMScheduler", BETAS),
    ("EDMEulerScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
)
TITLES = ["sampler", "nfe", "depth", "largest deviation", "remark, or why it is refused"]


class Result(NamedTuple):
    """One sampler; without a deviation it is refused."""

    name: str
    nfe: int
    depth: int
    deviation: float | None
    remarks: str

    def line(self) -> str:
        """Its line of the table."""
        costs = ("", "", "refused") if self.deviation is None else (self.nfe, self.depth, f"{self.deviation:.0e}")
        return "| " + " | ".join(map(str, (self.name, *costs, self.remarks))) + " |"


def network(x: Tensor, level: Any) -> Tensor:
    """Not linear; the level may be one of each image."""
    level = torch.as_tensor(level, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return torch.tanh(0.7 * x) + 0.3 * torch.cos(level / (1 + level)) * torch.sin(x)


def images() -> Tensor:
    """Noise for two images."""
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def measured(name: str, make: Callable[[], Imported], deviation: Callable[[Imported], float]) -> Result:
    """Probe a sampler and measure its table, or say why there is none."""
    try:
        found = make()
    except ValueError as error:
        return Result(name, 0, 0, None, str(error))
    return Result(name, found.program.nfe, found.program.depth, deviation(found), "; ".join(found.remarks[1:]))


def relative(played: Tensor, own: Tensor) -> float:
    """Largest difference, relative to the largest pixel."""
    return float((played - own).abs().max() / own.abs().max())


def of_scheduler(name: str, options: dict[str, Any], steps: int) -> Result:
    """One scheduler of diffusers against its own loop, the network predicting what its configuration says."""
    diffusers = importlib.import_module("diffusers")
    scheduler = getattr(diffusers, name)(**options)

    def deviation(found: Imported) -> float:
        own, noise = getattr(diffusers, name)(**options), images()
        own.set_timesteps(steps)
        x = noise * getattr(own, "init_noise_sigma", 1.0)
        for timestep in own.timesteps:
            seen = own.scale_model_input(x, timestep) if hasattr(own, "scale_model_input") else x
            x = own.step(network(seen, float(timestep) / 1000), timestep, x, return_dict=False)[0]
        told = [float(timestep) / 1000 for timestep in own.timesteps]
        return relative(sample(found.program, denoiser_of(scheduler, told), noise), x)

    shown = {key: value for key, value in options.items() if key not in BETAS and key not in ("flow_shift", "tau_func")}
    title = ", ".join([name, *(f"{key}={value}" for key, value in shown.items())])
    return measured(title, lambda: probe(scheduler, steps), deviation)


def denoiser_of(scheduler: Any, told: list[float]) -> Callable[..., Tensor]:
    """The network of a scheduler as a denoiser; timesteps are looked up by their level."""
    facts = network_of(scheduler)
    pairs = [facts.level(time * 1000) for time in told]
    ratios = torch.tensor([math.atan2(sigma, alpha) for alpha, sigma in pairs], dtype=torch.float64)

    def denoise(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        nearest = (torch.atan2(sigma, alpha)[:, None] - ratios).abs().argmin(1)
        times = torch.tensor(told, dtype=torch.float64)[nearest]
        scale = alpha + sigma if facts.prediction == "flow" else torch.hypot(alpha, sigma)
        alpha, sigma, scale = (value.view(-1, 1, 1, 1) for value in (alpha / scale, sigma / scale, scale))
        seen = x / scale
        output = network(seen, times)
        if facts.prediction == "denoised":
            return output
        if facts.prediction == "v":
            return alpha * seen - sigma * output
        return (seen - sigma * output) / (1 if facts.prediction == "flow" else alpha)

    return denoise


@contextlib.contextmanager
def comfy_modules(checkout: Path) -> Iterator[tuple[Any, Any, Any]]:
    """`comfy.samplers`, `comfy.model_sampling` and its UniPC, of a checkout; ComfyUI reads the command line itself."""
    if not (checkout / "comfy" / "samplers.py").is_file():
        raise ValueError(f"{checkout} is no checkout of ComfyUI: it has no comfy/samplers.py")
    before, sys.argv = sys.argv, ["main.py", "--cpu"]
    sys.path.insert(0, str(checkout))
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        names = ("comfy.samplers", "comfy.model_sampling", "comfy.extra_samplers.uni_pc")
        samplers, sampling, uni_pc = (importlib.import_module(name) for name in names)
    finally:
        sys.argv = before
        sys.path.remove(str(checkout))
    with _double():
        yield samplers, sampling, uni_pc


@contextlib.contextmanager
def _double() -> Iterator[None]:
    """ComfyUI's samplers in double precision, so that differences are those of the tables."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Settings:
    """What ComfyUI's classes read of a model's configuration."""

    def __init__(self, **sampling: Any) -> None:
        self.sampling_settings = sampling


def of_comfy(checkout: Path, kind: str, steps: int) -> list[Result]:
    """Every sampler name of a ComfyUI checkout, on an eps model or a flow model."""
    flow, results = kind == "flow", list[Result]()
    with comfy_modules(checkout) as (samplers, sampling, uni_pc):
        bases = (
            (sampling.ModelSamplingDiscreteFlow, sampling.CONST)
            if flow
            else (sampling.ModelSamplingDiscrete, sampling.EPS)
        )
        model = type("Sampling", bases, {})(Settings(shift=3.0) if flow else Settings())
        sigmas = samplers.calculate_sigmas(model, "simple" if flow else "karras", steps).double()
        for name in samplers.SAMPLER_NAMES:
            special = {"ddim": "sample_euler", "uni_pc": "sample_unipc", "uni_pc_bh2": "sample_unipc_bh2"}
            home = uni_pc if name.startswith("uni_pc") else samplers.k_diffusion_sampling
            function = getattr(home, special.get(name, f"sample_{name}"))
            options = without_noise(name, function)

            def make(function: Any = function, options: dict[str, Any] = options) -> Imported:
                return probe(function, sigmas=sigmas, flow=flow, model_sampling=model, options=options)

            def deviation(found: Imported, function: Any = function, options: dict[str, Any] = options) -> float:
                return relative(*both(found, function, options, sigmas, flow, model))

            results.append(measured(name, make, deviation))
    return results


def without_noise(name: str, function: Any) -> dict[str, Any]:
    """The arguments with which a sampler of ComfyUI draws no noise."""
    takes = inspect.signature(function).parameters
    if "tau_func" in takes:
        return {"tau_func": lambda _: 0.0, "s_noise": 0.0}
    if name == "er_sde":
        return {"noise_scaler": lambda sigma: sigma, "s_noise": 0.0}
    churns = "s_churn" in takes  # where s_noise has no meaning at churn 0
    return {key: 0.0 for key in ("eta", "s_noise") if key in takes and not (churns and key == "s_noise")}


def both(
    found: Imported, function: Any, options: dict[str, Any], sigmas: Tensor, flow: bool, model: Any
) -> tuple[Tensor, Tensor]:
    """The table's images and the function's own."""
    noise = images()
    takes, inner = inspect.signature(function).parameters, [float(sigma) for sigma in sigmas if sigma > 0]
    stand_in = StandIn(lambda x, alpha, sigma: network(x, sigma), flow, model)
    ends = {"sigma_min": inner[-1], "sigma_max": inner[0], "n": len(sigmas) - 1}
    levels = ends if "sigma_min" in takes else {"sigmas": sigmas}
    if function.__name__.startswith("sample_unipc"):
        own = function(stand_in, noise * sigmas[0], sigmas, extra_args={"seed": 0}, disable=True)
    else:
        own = function(stand_in, noise * sigmas[0], **levels, extra_args={"seed": 0}, disable=True, **options)

    def denoise(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        scale = alpha + sigma if flow else alpha
        return network(x / scale.view(-1, 1, 1, 1), sigma / scale)

    return sample(found.program, denoise, noise), own


def section(title: str, text: str, results: list[Result], goal: float) -> list[str]:
    """A part of the report."""
    known = [result.deviation for result in results if result.deviation is not None]
    within = sum(deviation <= goal for deviation in known)
    lines = ["| " + " | ".join(TITLES) + " |", "|---|---:|---:|---:|---|", *(result.line() for result in results)]
    counted = f"{len(known)} of {len(results)} are tables, {within} of them to {goal:.0e} or better."
    return [f"## {title}", "", text, "", *lines, "", counted, ""]


def report(arguments: argparse.Namespace) -> str:
    """The measurement as Markdown."""
    schedulers = [of_scheduler(name, options, arguments.steps) for name, options in SETUPS]
    text = "Schedulers compute in single precision, which their deviation is."
    parts = section("Schedulers of diffusers", text, schedulers, 1e-6)
    version = importlib.import_module("diffusers").__version__
    comfy = "no ComfyUI was given"
    if arguments.comfyui:
        for kind, model in (("eps", "an eps model, karras levels"), ("flow", "a flow model of shift 3, simple levels")):
            results = of_comfy(arguments.comfyui, kind, arguments.steps)
            parts += section(f"ComfyUI's samplers, {kind}", f"On {model}; eta, s_noise and tau 0.", results, 1e-12)
        comfy = (
            f"ComfyUI {sys.modules['comfyui_version'].__version__}" if _comfy_version(arguments.comfyui) else "ComfyUI"
        )
    typed = (
        command().replace(str(arguments.comfyui), f"../{arguments.comfyui.name}") if arguments.comfyui else command()
    )
    return "\n".join(
        [
            "# Other people's samplers as tables",
            "",
            f"Each sampler was [probed](../samplers.md) at {arguments.steps} steps. Then its own loop and its table",
            "ran on the same random images under the same network, which is not linear. *Deviation*: the largest",
            "difference between the two samples, relative to the largest pixel.",
            "",
            *parts,
            f"- Command: `{typed}`",
            f"- diffusers {version}, {comfy}; {describe(torch.device('cpu'))}",
            "",
        ]
    )


def _comfy_version(checkout: Path) -> bool:
    sys.path.insert(0, str(checkout))
    try:
        importlib.import_module("comfyui_version")
    except ImportError:
        return False
    finally:
        sys.path.remove(str(checkout))
    return True


@torch.no_grad()
def run(arguments: argparse.Namespace) -> None:
    """Measure, show and write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of diffusers and numpy about each other
        text = report(arguments)
    Console().print(text, highlight=False, soft_wrap=True, markup=False)
    if arguments.out:
        write_atomically(arguments.out, text)
