"""The SAMPLER: a solver that looks at the MODEL it is played on before it begins."""

from __future__ import annotations

import logging
from typing import Any

import comfy.samplers  # pyright: ignore[reportMissingImports]

from solverdistill.consumers.kdiffusion import kind_of_sigmas, sample_learned
from solverdistill.consumers.state_scales import Scale
from solverdistill.programs.solver_file import SolverFile

from .checks import check_model, remarks

log = logging.getLogger(__name__)


class LearnedSampler(comfy.samplers.KSAMPLER):
    """Plays a solver file, wherever ComfyUI takes a SAMPLER.

    Args:
        solver: The file.
        parallel: See `sample_learned`.
    """

    def __init__(self, solver: SolverFile, parallel: bool | None = None) -> None:
        super().__init__(sample_learned, extra_options={"solver": solver, "parallel": parallel})
        self.solver = solver

    def sample(self, model_wrap: Any, sigmas: Any, *args: Any, **kwargs: Any) -> Any:
        """Check the MODEL, say what differs from the solver's, and play."""
        model = model_wrap.inner_model
        check_model(self.solver, model.model_sampling, kind_of_sigmas(self.solver, sigmas))
        for remark in remarks(self.solver, model.model_sampling, guidance_of(model_wrap), channels_of(model)):
            say(remark)
        return super().sample(model_wrap, sigmas, *args, **kwargs)

    def max_denoise(self, model_wrap: Any, sigmas: Any) -> bool:
        """Whether the first state is noise of size hypot(1, sigma) in place of sigma, as the solver was fitted to it.

        ComfyUI asks, and takes the larger one for its own samplers wherever they begin at the MODEL's highest sigma.
        """
        program, scale = Scale.matching(self.solver, sigmas)
        return program is self.solver.program and scale.start.noise**2 - float(sigmas[0]) ** 2 > 0.5


def guidance_of(guider: Any) -> float | None:
    """The guidance scale of a guider: its cfg, or what a network that takes it as an input is told; None if unknown."""
    config = getattr(getattr(guider.inner_model, "model_config", None), "unet_config", None) or {}
    if config.get("guidance_embed"):
        conds = getattr(guider, "original_conds", {}).get("positive") or [{}]
        told = conds[0].get("guidance")
        return None if told is None else float(told)
    return None if hasattr(guider, "cfg1") or not hasattr(guider, "cfg") else float(guider.cfg)


def channels_of(model: Any) -> int | None:
    """Channels of a MODEL's latents; None if unknown."""
    return getattr(getattr(model, "latent_format", None), "latent_channels", None)


def say(sentence: str) -> None:
    """Tell the console, and where there is a server the node that runs."""
    log.warning(sentence)
    try:
        from comfy_execution.utils import get_executing_context  # pyright: ignore[reportMissingImports]
        from server import PromptServer  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(sentence, context.node_id)
