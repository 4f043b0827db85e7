"""A loaded pipeline as a teacher: `solverdistill.teachers.from_pipeline(pipe, prompts=[...], guidance=5.0)`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from solverdistill.teachers.diffusers.pipelines.making import Setting
from solverdistill.teachers.diffusers.pipelines.teacher import PipelineTeacher
from solverdistill.teachers.diffusers.prompts import read_prompts

Prompts = str | Sequence[str | Mapping[str, Any]] | None


def from_pipeline(
    pipe: Any,
    prompts: Prompts = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    *,
    guidance_argument: str | None = None,
    noise_range: Sequence[float] | None = None,
    name: str | None = None,
    **call_arguments: Any,
) -> PipelineTeacher:
    """Make a teacher from a pipeline of diffusers, as it is set up: LoRAs, experts, image conditions, guiders.

    >>> teacher = from_pipeline(pipe, prompts=["a fox in the snow"], guidance=5.0, height=480, width=832, num_frames=33)
    >>> done = solverdistill.distill(teacher, "bns", nfe=8)

    It makes a few steps of its own first, on which everything that is found out about it is checked. Its scheduler and
    methods stay as they are; its networks are frozen and in evaluation mode from then on.

    Args:
        pipe: The pipeline.
        prompts: Texts, a text file or a CSV to draw from; or mappings of arguments of the call, such as embeddings of
            one prompt each. None draws from the package's own captions, unless the call arguments hold a prompt or
            embeddings, or the pipeline takes none.
        guidance: The pipeline's own guidance scale; None for its default, or what the call arguments say.
        height, width, num_frames: Of the call; None for its defaults.
        guidance_argument: Name of the argument that is the guidance scale, or "guider" for such a component; None
            finds it.
        noise_range: Largest and smallest noise level, in the unit of its path; None for all that were trained.
        name: Name in files and tables; None for that of the pipeline's class.
        call_arguments: Further arguments of the pipeline's call.
    Raises:
        ValueError: the pipeline cannot be called so, or resists; the message says why.
    """
    if not hasattr(pipe, "scheduler") or not hasattr(pipe, "components"):
        raise ValueError(f"a pipeline of diffusers with a scheduler is needed, not {type(pipe).__name__}")
    sizes = {"height": height, "width": width, "num_frames": num_frames}
    arguments = {**{key: value for key, value in sizes.items() if value is not None}, **call_arguments}
    for reserved in ("latents", "generator", "num_inference_steps", "return_dict"):
        if reserved in arguments:
            raise ValueError(f"{reserved} of the pipeline's call is the teacher's to give; leave it out")
    found = find_prompts(pipe, prompts, arguments)
    levels = None
    if noise_range is not None:
        high, low = (float(level) for level in noise_range) if len(noise_range) == 2 else (0.0, 0.0)
        if high <= low:
            raise ValueError(f"model.noise_range={list(noise_range)} must be [largest, smallest] noise level")
        levels = high, low
    scale = None if guidance is None else float(guidance)
    setting = Setting(pipe, found or [{}], bool(found), arguments, scale, guidance_argument, levels, name)
    return PipelineTeacher(setting)


def find_prompts(pipe: Any, prompts: Prompts, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arguments of the call that stand for one prompt each; none where there is nothing to draw from.

    Raises:
        ValueError: there are prompts and the call has no argument for them, or has got one already.
    """
    takes = inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters
    named = [key for key in arguments if key in ("prompt", "class_labels") or "embeds" in key]
    given = [key for key in named if arguments[key] is not None and not key.startswith("negative")]
    if prompts is None and (given or "prompt" not in takes):
        return []
    if isinstance(prompts, Sequence) and not isinstance(prompts, str) and len(prompts):
        if all(isinstance(prompt, Mapping) for prompt in prompts):
            return [dict(prompt) for prompt in prompts if isinstance(prompt, Mapping)]
    if given:
        raise ValueError(f"prompts and {given[0]} are both given; take one of them")
    if "prompt" not in takes:
        raise ValueError(f"{type(pipe).__name__} takes no prompt; leave prompts out")
    texts: Any = prompts
    return [{"prompt": text} for text in read_prompts(texts)]
