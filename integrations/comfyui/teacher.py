"""A MODEL of ComfyUI as a teacher: its LoRAs, conditioning, cfg and size are those of the graph.

ComfyUI is asked as it asks itself: a guider prepares model, conditions and hooks, and calls a sampler, which here asks
for denoised images instead of sampling one. Nothing of the network is known but what its `model_sampling` says.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import comfy.samplers  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.noise.paths import EDM, Discrete, Flow, Path

from .checks import check_states

ENDS_BELOW = 5.0  # an eps model's solver ends at its lowest sigma divided by this: no visible noise, a trained timestep
FIRST = 16  # numbers of every tensor that a fingerprint reads


class PromptGuider(comfy.samplers.CFGGuider):
    """Classifier-free guidance towards one of several prompts; `prompt` says which.

    All of them go through ComfyUI's preparation; their areas and controls are then matched with those of the negative
    prompt alone, as if each were the only one.
    """

    def __init__(self, model: Any, prompts: Sequence[Any], negative: Any, cfg: float) -> None:
        super().__init__(model)
        others = {f"positive_{i}": prompt for i, prompt in enumerate(prompts) if i}
        self.inner_set_conds({"positive": prompts[0], "negative": negative, **others})
        self.set_cfg(cfg)
        self.prompt, self.others = 0, list[dict[str, Any]]()

    def inner_sample(self, noise: Any, latent_image: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
        """Match every other prompt with the negative one, then go on with the first."""
        model, given = self.inner_model, self.conds
        for name in [name for name in given if name not in ("positive", "negative")]:
            pair = {"positive": given.pop(name), "negative": [dict(cond) for cond in given["negative"]]}
            self.others.append(comfy.samplers.process_conds(model, noise, pair, device, latent_image, None, args[-1]))
        return super().inner_sample(noise, latent_image, device, *args, **kwargs)

    def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: int | None = None) -> Any:
        """The guided denoised image."""
        conds = self.conds if self.prompt == 0 else self.others[self.prompt - 1]
        options = {"model_options": model_options or {}, "seed": seed}
        both = conds["negative"], conds["positive"]
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, *both, self.cfg, **options)

    def all_conds(self) -> dict[str, list[Any]]:
        """All prepared conditions, by names of no meaning."""
        sets = enumerate([self.conds, *self.others])
        return {f"{name} {i}": conds for i, pair in sets for name, conds in pair.items()}


class ModelTeacher(Teacher):
    """A prepared MODEL as a denoiser, on the device and in the batches that ComfyUI can take.

    Args:
        guider: A `PromptGuider` whose sampler is running.
        extra_args: What ComfyUI gave that sampler.
        shape: Shape of one latent.
        prompts: Number of prompts; samples draw theirs as class labels where there are several.
        batch: Latents per call.
        told: Called with the latents evaluated so far and the newest denoised images.
        device: Where the latents go.
    Raises:
        ValueError: states of the MODEL are of no known kind.
    """

    def __init__(
        self,
        guider: PromptGuider,
        extra_args: dict[str, Any],
        shape: Sequence[int],
        prompts: int,
        batch: int,
        told: Callable[[int, Tensor], None],
        device: Any,
    ) -> None:
        model = guider.inner_model
        path, noise_range, prediction = facts_of(model.model_sampling)
        name = type(getattr(model, "model_config", model)).__name__
        super().__init__(name, tuple(shape), path, noise_range, prediction, prompts if prompts > 1 else 0)
        self.guider, self.extra_args, self.batch, self.told, self.device = guider, extra_args, batch, told, device
        self.flow, self.evaluated = prediction == "flow", 0

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """The guided denoised images."""
        scale = alpha + sigma if self.flow else alpha
        states, sigmas = x / scale.view(-1, *[1] * (x.ndim - 1)), sigma / scale
        prompts = torch.zeros(len(x), dtype=torch.int64) if cond is None else cond.clamp(min=0).cpu()
        parts = [
            (prompt, rows)
            for prompt in prompts.unique().tolist()
            for rows in (prompts == prompt).nonzero().flatten().split(self.batch)
        ]
        order = torch.cat([rows for _, rows in parts]).argsort().to(x.device)
        found = [self._ask(prompt, states[rows.to(x.device)], sigmas[rows.to(x.device)]) for prompt, rows in parts]
        return torch.cat(found).to(x)[order]

    def _ask(self, prompt: int, x: Tensor, sigma: Tensor) -> Tensor:
        """One call; in inference mode, as ComfyUI makes it, where no gradients are wanted. The result can be kept."""
        self.guider.prompt = prompt
        with torch.inference_mode(not torch.is_grad_enabled()):
            found = self.guider(x.float().to(self.device), sigma.float().to(self.device), **self.extra_args)
        found = found if torch.is_grad_enabled() else found.clone()
        self.evaluated += len(x)
        self.told(self.evaluated, found.detach())
        return found

    def description(self) -> dict[str, Any]:
        return {**super().description(), "prompts": max(self.num_classes, 1), "cfg": self.guider.cfg}

    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) of the description and of the first numbers of every tensor of the network."""
        digest = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode())
        for key, value in sorted(self.guider.inner_model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().flatten()[:FIRST].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def facts_of(sampling: Any) -> tuple[Path, tuple[float, float], str]:
    """Path, noise range and prediction type of a MODEL, from its `model_sampling`.

    Raises:
        ValueError: its states are of no known kind.
    """
    if check_states(sampling) == "flow":
        middle = float(sampling.percent_to_sigma(0.5))
        return Flow(round(middle / (1 - middle), 6)), (1.0, 0.0), "flow"
    kinds = {kind.__name__ for kind in type(sampling).__mro__}
    prediction = "denoised" if kinds & {"X0", "EDM"} else "v" if "V_PREDICTION" in kinds else "eps"
    lowest, highest = float(sampling.sigma_min), float(sampling.sigma_max)
    if "ModelSamplingDiscrete" not in kinds:
        return EDM(), (highest, lowest), "denoised"
    path = discrete_path(sampling.sigmas)
    end = path.from_half_log_snr(-math.log(lowest / ENDS_BELOW))
    return path, (1.0, float(end)), prediction


def discrete_path(sigmas: Tensor) -> Discrete:
    """The path of a table of sigma / alpha: one of two well-known ones, or the table itself."""
    squares = 1 / (1 + sigmas.detach().double().cpu() ** 2)
    for known in (Discrete(), Discrete(None, "linear", 0.0001, 0.02)):
        table = torch.exp(2 * known.table[1])
        if table.shape == squares.shape and bool(torch.isclose(table, squares, rtol=1e-4, atol=0).all()):
            return known
    return Discrete(tuple(squares.tolist()))
