"""The argument of a pipeline's call that holds its guidance scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solverdistill.teachers.diffusers.pipelines.view import View

GUIDER = "guider"  # a component that guides, in pipelines without such an argument
BY_NUMBER = ("skip_guidance_layers",)  # arguments that act in some steps, by their number among many
SCALES = ("guidance_scale", "true_cfg_scale", "max_guidance_scale", "distilled_guidance_scale")


def find_argument(view: View, arguments: Mapping[str, Any], stated: str | None = None) -> str | None:
    """The name of the argument; `GUIDER` for a component; None for a pipeline that is not guided.

    Where a call has both `true_cfg_scale` (two passes) and `guidance_scale` (a number told to networks that were
    distilled for it), it is the one that is given; else, by the network, the one that has an effect. A guider comes
    before a number that is told to no network.

    Raises:
        ValueError: the one that is stated is no argument of the call.
    """
    known = [name for name in SCALES if view.takes(name)]
    if stated is not None:
        if not (view.takes(stated) or (stated == GUIDER and hasattr(view.pipe, GUIDER))):
            raise ValueError(f"{view.name} has no argument {stated}; of guidance it has: {', '.join(known) or 'none'}")
        return stated
    configs = [getattr(part, "config", {}) for name, part in view.parts.items() if view.is_network(name)]
    embedded = any(config.get("guidance_embeds", False) for config in configs)
    if "true_cfg_scale" in known and "guidance_scale" in known:
        given = [name for name in ("true_cfg_scale", "guidance_scale") if arguments.get(name) is not None]
        return given[0] if given else "guidance_scale" if embedded else "true_cfg_scale"
    has_guider = hasattr(getattr(view.pipe, GUIDER, None), "new")
    if known and not (has_guider and not embedded):
        return known[0]
    return GUIDER if has_guider else None


def refuse_by_number(view: View, arguments: Mapping[str, Any]) -> None:
    """Refuse guidance that a few steps of sampling may not show: it acts in some of many steps, by their number.

    Raises:
        ValueError: there is such guidance.
    """
    guider = getattr(view.pipe, GUIDER, None)
    ends = getattr(guider, "_start", 0.0), getattr(guider, "_stop", 1.0)
    given = next((name for name in BY_NUMBER if arguments.get(name) is not None), None)
    if given is None and ends != (0.0, 1.0):
        given = f"the interval {ends[0]:g} to {ends[1]:g} of its {type(guider).__name__}"
    if given is not None:
        raise ValueError(
            f"{given} of {view.name} acts by the number of the step and not by its noise level, which no solver knows"
        )


def scale_of(view: View, arguments: Mapping[str, Any], argument: str | None) -> float:
    """The scale in effect: what is given, or the pipeline's own default; 1 where it guides nothing.

    Two-pass guidance beside an embedded one (`true_cfg_scale`) does nothing without a negative prompt.
    """
    if argument is None or (argument == "true_cfg_scale" and not _has_negative(arguments)):
        return 1.0
    if argument == GUIDER:
        return float(getattr(getattr(view.pipe, GUIDER), "guidance_scale", 1.0))
    value = arguments.get(argument)
    value = view.parameters[argument].default if value is None else value
    return float(value) if isinstance(value, (int, float)) else 1.0


def with_scale(view: View, arguments: Mapping[str, Any], argument: str | None, scale: float | None) -> dict[str, Any]:
    """The arguments of a call at a scale; None leaves them as they are. A guider is replaced in the view.

    Raises:
        ValueError: the pipeline cannot be guided, or guides only away from a negative prompt that is not given.
    """
    if scale is None or scale == scale_of(view, arguments, argument):
        return dict(arguments)
    if argument is None:
        raise ValueError(f"{view.name} has no guidance scale to set to {scale:g}; leave guidance at null")
    if argument == GUIDER:
        vars(view.pipe)[GUIDER] = getattr(view.pipe, GUIDER).new(guidance_scale=float(scale))
        return dict(arguments)
    if argument == "true_cfg_scale" and scale > 1 and not _has_negative(arguments):
        raise ValueError(
            f"{view.name} guides away from a negative prompt, and none is given: add negative_prompt, if only ' '"
        )
    return {**arguments, argument: float(scale)}


def _has_negative(arguments: Mapping[str, Any]) -> bool:
    return any(name.startswith("negative_prompt") and value is not None for name, value in arguments.items())
