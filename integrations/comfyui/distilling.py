"""The node that distils a solver for the MODEL at hand, saves it, and hands it on."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sample  # pyright: ignore[reportMissingImports]
import comfy.samplers  # pyright: ignore[reportMissingImports]
import folder_paths  # pyright: ignore[reportMissingImports]
import latent_preview  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor

from solverdistill.consumers.kdiffusion import sigmas_of
from solverdistill.programs.solver_file import read_solver

from .budget import settings_of
from .gradients import differentiable
from .loading import FOLDER, describe
from .playing import LearnedSampler, guidance_of
from .teacher import ModelTeacher, PromptGuider

MISSING = (
    "distilling needs {name}, which this Python has not: pip install 'solverdistill[fit]' into it; playing a solver "
    "needs nothing of it"
)


class Distilling(comfy.samplers.Sampler):
    """A sampler that fits a solver to the model that it is given, and hands back the latents as they came.

    Args:
        fit: Makes the solver of a teacher.
        prompts: Number of prompts of the guider.
        batch: Latents per call.
        budget: Evaluations that the progress bar ends at.
        gradients: Whether derivatives of the network will be asked for.
    """

    def __init__(
        self, fit: Callable[[ModelTeacher], Any], prompts: int, batch: int, budget: int, gradients: bool = False
    ) -> None:
        self.fit, self.prompts, self.batch, self.budget, self.gradients = fit, prompts, batch, budget, gradients
        self.done: Any = None

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Fit, with ComfyUI's progress bar and preview at every call; it interrupts there too."""

        def told(evaluated: int, denoised: Tensor) -> None:
            if callback is not None:
                callback(evaluated - 1, denoised, denoised, max(evaluated, self.budget))

        facts = (model_wrap, extra_args, noise.shape[1:], self.prompts, self.batch)
        asked = model_wrap.inner_model, model_wrap.all_conds()
        with torch.inference_mode(False), torch.no_grad(), differentiable(*asked) if self.gradients else nullcontext():
            done = self.fit(ModelTeacher(*facts, told, noise.device))
        self.done = replace(done, provenance={**done.provenance, "guidance": guidance_of(model_wrap)})
        return noise


def distil(
    model: Any,
    positive: Any,
    negative: Any,
    latent_image: dict[str, Any],
    cfg: float,
    nfe: int,
    budget: int,
    seed: int,
    batch: int,
    save_as: str,
    gradients: bool = False,
    positive_2: Any = None,
    positive_3: Any = None,
    positive_4: Any = None,
) -> tuple[Any, Any, str, str]:
    """Sampler, sigmas, name of the file in models/solvers, and a line about it.

    Args:
        model: MODEL, with its LoRAs.
        positive: CONDITIONING.
        negative: CONDITIONING.
        latent_image: LATENT; its size is that of the images.
        cfg: Guidance scale.
        nfe: Evaluations per image of the solver.
        budget: Evaluations that distilling may take, about.
        seed: Of noise and prompts.
        batch: Latents per call.
        save_as: Name of the file, without number and ending.
        gradients: Take derivatives of the network too.
        positive_2, positive_3, positive_4: More prompts.
    Raises:
        ValueError: the MODEL cannot be a teacher, or a package is missing.
    """
    try:
        from solverdistill.training.distilling import distill
    except ModuleNotFoundError as error:
        raise ValueError(MISSING.format(name=error.name)) from error
    prompts = [prompt for prompt in (positive, positive_2, positive_3, positive_4) if prompt is not None]

    def fit(teacher: ModelTeacher) -> Any:
        settings = settings_of(budget, batch, gradients)
        return distill(teacher, nfe=nfe, seed=seed, device=str(teacher.device), progress=False, **settings)

    fitting = Distilling(fit, len(prompts), batch, budget, gradients)
    guider = PromptGuider(model, prompts, negative, cfg)
    size = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
    blank = torch.zeros(batch, *size.shape[1:])
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max), 0.0])
    callback = latent_preview.prepare_callback(model, budget)
    guider.sample(blank, blank, fitting, sigmas, callback=callback, seed=seed)
    done, place = fitting.done, free_place(save_as)
    done.save(place)
    solver = read_solver(place)
    about = f"{describe(solver)}, RMSE {done.rmse:.4f} after {done.evaluations:,} evaluations"
    return LearnedSampler(solver), sigmas_of(solver), place.name, about


def free_place(name: str) -> Path:
    """The next free numbered file of a name in models/solvers.

    Raises:
        ValueError: the name leaves that folder.
    """
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0]).resolve()
    stem = (folder / (name or "solver")).resolve()
    if not stem.is_relative_to(folder) or stem == folder:
        raise ValueError(f"save_as {name!r} is no name of a file in {FOLDER}")
    os.makedirs(stem.parent, exist_ok=True)
    number = 1
    while (place := stem.with_name(f"{stem.name}_{number:05}.json")).exists():
        number += 1
    return place
