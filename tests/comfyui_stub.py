"""As much of ComfyUI as integrations/comfyui touches, for tests; `scripts/benchmarks/comfyui.py` runs in the real one.

Names, argument orders, scales of noise and the mixing of masks are ComfyUI's; MODEL is a mixture with a known denoiser.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.teachers.mixture import toy_mixture

PACKAGE = Path(__file__).parents[1] / "integrations" / "comfyui"
NAME = "custom_nodes_solverdistill"
WATCHES_GRADIENTS = True  # a call outside of inference mode is a mistake, as it is for ComfyUI's own samplers


class Eps:
    """A `model_sampling` of eps models."""

    sigma_max, sigma_min = torch.tensor(80.0), torch.tensor(0.002)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        scale = (1 + sigma**2).sqrt() if max_denoise else sigma
        return noise * scale + latent_image

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class Flow(Eps):
    """A `model_sampling` of flow models."""

    sigma_max, sigma_min = torch.tensor(1.0), torch.tensor(0.001)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return sigma * noise + (1 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - sigma)

    def percent_to_sigma(self, percent: float) -> float:
        return 1 - percent


class BaseModel:
    """The model inside of a MODEL."""

    def __init__(self, flow: bool) -> None:
        self.flow, self.model_sampling = flow, Flow() if flow else Eps()
        self.latent_format = SimpleNamespace(latent_channels=6)
        self.batches: list[int] = []

    def apply(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoised images."""
        self.batches.append(len(x))
        return toy_mixture()(x, 1 - sigma if self.flow else torch.ones_like(sigma), sigma)

    def scale_latent_inpaint(self, x: Tensor, sigma: Tensor, noise: Tensor, latent_image: Tensor) -> Tensor:
        return self.model_sampling.noise_scaling(sigma.view(-1, *[1] * (x.ndim - 1)), noise, latent_image)

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": torch.ones(2)}


class ModelPatcher:
    """A MODEL."""

    def __init__(self, flow: bool = False) -> None:
        self.model = BaseModel(flow)
        self.model_options = {"transformer_options": {}}

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)


class CFGGuider:
    """Prepares a model and its conditions, and calls a sampler."""

    def __init__(self, model_patcher: ModelPatcher) -> None:
        self.model_patcher, self.original_conds, self.cfg = model_patcher, {}, 1.0

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        self.original_conds.update({name: [dict(one[1], cross=one[0]) for one in cond] for name, cond in conds.items()})

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        return self.predict_noise(x, timestep, model_options, seed)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        pair = self.conds.get("negative"), self.conds.get("positive")
        return sampling_function(self.inner_model, x, timestep, *pair, self.cfg, model_options, seed)

    @torch.inference_mode()
    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        self.conds = {name: [dict(one) for one in conds] for name, conds in self.original_conds.items()}
        self.inner_model = self.model_patcher.model
        return self.inner_sample(
            noise, latent_image, noise.device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed
        )

    def inner_sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        device: Any,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
        callback: Any,
        disable_pbar: bool,
        seed: int | None,
    ) -> Tensor:
        self.conds = process_conds(self.inner_model, noise, self.conds, device, latent_image, denoise_mask, seed)
        extra = {"model_options": {"transformer_options": {}}, "seed": seed}
        return sampler.sample(self, sigmas, extra, callback, noise, latent_image, denoise_mask, disable_pbar)


def process_conds(
    model: Any, noise: Tensor, conds: Any, device: Any, latent_image: Any, denoise_mask: Any, seed: Any
) -> Any:
    assert set(conds) <= {"positive", "negative"}, "conditions of other names would be matched with each other"
    return {name: [{**one, "prepared": seed} for one in cond] for name, cond in conds.items()}


def sampling_function(
    model: Any, x: Tensor, timestep: Tensor, uncond: Any, cond: Any, cond_scale: float, model_options: Any, seed: Any
) -> Tensor:
    assert torch.is_inference_mode_enabled() or not WATCHES_GRADIENTS
    found = model.apply(x, timestep)
    if cond is None:
        return found
    assert all("prepared" in one for one in (*cond, *uncond))
    return found + 0.1 * cond_scale * (cond[0]["cross"].mean() - uncond[0]["cross"].mean())


class Inpaint:
    """The model as a sampler sees it: it takes exactly these arguments and mixes in what the mask keeps."""

    def __init__(self, model: Any, sigmas: Tensor) -> None:
        self.inner_model, self.sigmas = model, sigmas

    def __call__(
        self, x: Tensor, sigma: Tensor, denoise_mask: Tensor | None, model_options: Any = None, seed: int | None = None
    ) -> Tensor:
        change = (model_options or {}).get("denoise_mask_function")
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options=model_options, seed=seed)
        if change is not None:
            told = {"model": self.inner_model, "sigmas": self.sigmas}
            denoise_mask = change(sigma, denoise_mask, extra_options=told)
        kept = 1 - denoise_mask
        noised = self.inner_model.inner_model.scale_latent_inpaint(x, sigma, self.noise, self.latent_image)
        found = self.inner_model(x * denoise_mask + noised * kept, sigma, model_options=model_options, seed=seed)
        return found * denoise_mask + self.latent_image * kept


class Sampler:
    """What a SAMPLER is."""

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        highest, first = float(model_wrap.inner_model.model_sampling.sigma_max), float(sigmas[0])
        return math.isclose(highest, first, rel_tol=1e-5) or first > highest


class KSAMPLER(Sampler):
    """A SAMPLER around a function of k-diffusion's."""

    def __init__(self, sampler_function: Any, extra_options: Any = None, inpaint_options: Any = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Any = None,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        extra_args["denoise_mask"] = denoise_mask
        model = Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        sampling = model_wrap.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        steps = len(sigmas) - 1
        told = None if callback is None else lambda d: callback(d["i"], d["denoised"], d["x"], steps)
        options = {"extra_args": extra_args, "callback": told, "disable": disable_pbar, **self.extra_options}
        return sampling.inverse_noise_scaling(sigmas[-1], self.sampler_function(model, x, sigmas, **options))


def sample_custom(
    sampler: Any,
    sigmas: Tensor,
    noise: Tensor,
    latent: Tensor | None = None,
    mask: Tensor | None = None,
    model: ModelPatcher | None = None,
    cfg: float = 1.0,
    callback: Any = None,
) -> Tensor:
    """SamplerCustom, with noise in place of a seed."""
    guider = CFGGuider(model or ModelPatcher())
    guider.set_cfg(cfg)
    picture = torch.zeros_like(noise) if latent is None else latent
    return guider.sample(noise, picture, sampler, sigmas, mask, callback, True, 7).clone()


def make_modules(solvers: Path, current: bool) -> dict[str, ModuleType]:
    """ComfyUI's modules by their names, with models/solvers at a folder.

    Args:
        solvers: That folder.
        current: Whether there is the current node interface.
    """
    places: dict[str, Any] = {}

    def add(name: str, path: str, is_default: bool = False) -> None:
        assert Path(path).name == name == "solvers" and is_default
        places[name] = ([str(solvers)], set())

    def full_path(name: str, file: str) -> str | None:
        return str(solvers / file) if (solvers / file).is_file() else None

    def listed(name: str) -> list[str]:
        return sorted(path.name for path in solvers.iterdir() if path.suffix in places[name][1])

    paths = {"folder_names_and_paths": places, "models_dir": str(solvers.parent), "add_model_folder_path": add}
    paths |= {"get_filename_list": listed, "get_full_path": full_path, "get_folder_paths": lambda name: places[name][0]}
    samplers = {"KSAMPLER": KSAMPLER, "Sampler": Sampler, "CFGGuider": CFGGuider}
    samplers |= {"sampling_function": sampling_function, "process_conds": process_conds}
    modules = {
        "comfy.samplers": samplers,
        "comfy.sample": {"fix_empty_latent_channels": lambda model, latent: latent},
        "folder_paths": paths,
        "latent_preview": {"prepare_callback": lambda model, steps: record(model, steps)},
        "comfy_api.latest": make_interface() if current else {},
    }
    made = {name: ModuleType(name) for name in ("comfy", "comfy_api", *modules)}
    for name, members in modules.items():
        vars(made[name]).update(members)
    vars(made["comfy"]).update(samplers=made["comfy.samplers"], sample=made["comfy.sample"])
    return made


def record(model: Any, steps: int) -> Callable[..., None]:
    """A progress bar that keeps what it was told."""
    model.told = []

    def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        model.told.append((step, tuple(denoised.shape), total))

    return callback


def make_interface() -> dict[str, Any]:
    """What the current nodes take of comfy_api.latest."""

    class Slot:
        def __init__(self, *names: Any, **facts: Any) -> None:
            self.names, self.facts = names, facts

    class Schema(Slot):
        pass

    kind = SimpleNamespace(Input=Slot, Output=Slot)
    names = ("Model", "Conditioning", "Latent", "Sampler", "Sigmas", "String", "Int", "Float", "Boolean", "Combo")
    io = SimpleNamespace(**{name: kind for name in names}, Schema=Schema)
    io.NodeOutput, io.ComfyNode = lambda *results: results, object
    return {"io": io, "ComfyExtension": object}


def load(monkeypatch: pytest.MonkeyPatch, solvers: Path, current: bool = False) -> ModuleType:
    """Load integrations/comfyui as ComfyUI loads a folder of custom_nodes, undone at the end of the test."""
    for name, module in make_modules(solvers, current).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.startswith(NAME)]:
        monkeypatch.delitem(sys.modules, name)
    place = PACKAGE / "__init__.py"
    spec = importlib.util.spec_from_file_location(NAME, place, submodule_search_locations=[str(PACKAGE)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, NAME, module)
    spec.loader.exec_module(module)
    return module
