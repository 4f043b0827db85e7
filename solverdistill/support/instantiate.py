"""Objects from configurations: a mapping whose `_target_` names what to call, its other keys being the arguments.

The same conventions as hydra's, without hydra: `_partial_: true` binds the arguments and calls nothing, `_args_` are
positional. Mappings below with a `_target_` of their own are made first. Arguments are plain containers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from solverdistill.support.naming import find_by_name

SPECIAL = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
MISSING = "???"  # what configurations write for a value that the user has to give


def instantiate(options: Any, where: str = "an object") -> Any:
    """Make what a configuration describes; other values come back as they are.

    Args:
        options: A mapping with `_target_`, or a container of such.
        where: What it is called in messages.
    Raises:
        ValueError: a value is missing, the target does not exist or does not take the arguments.
    """
    if isinstance(options, Mapping):
        made = {key: instantiate(value, f"{where}.{key}") for key, value in options.items() if key not in SPECIAL}
        return _call(options, made, where) if "_target_" in options else made
    if options == MISSING:
        raise ValueError(f"{where} must be given")
    if isinstance(options, list):
        return [instantiate(value, where) for value in options]
    return options


def _call(options: Mapping[str, Any], keywords: dict[str, Any], where: str) -> Any:
    try:
        target = find_by_name("_target_", options["_target_"])
        arguments = instantiate(list(options.get("_args_", ())), where)
        if options.get("_partial_"):
            return partial(target, *arguments, **keywords)
        return target(*arguments, **keywords)
    except Exception as error:
        raise ValueError(f"{where} of the configuration cannot be made: {' '.join(str(error).split())}") from error
