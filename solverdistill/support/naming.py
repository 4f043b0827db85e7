"""Imports what a user names in a configuration: a network, a solver family."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def find_by_name(setting: str, name: str) -> Callable[..., Any]:
    """Import what a dotted name stands for, from the working folder too.

    Importing runs the module. Only names that the user wrote come here, never those that stand in a file.

    Args:
        setting: What the name was given as, for messages.
        name: Dotted name of a function, a class, or a method of one.
    Raises:
        ValueError: there is no such module, or nothing callable of that name in it.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = _find(name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(
            f"{setting} {name!r} cannot be imported ({error}); name module.function and start in the folder that "
            "holds the module, or set PYTHONPATH"
        ) from None
    if not callable(found):
        raise ValueError(f"{setting} {name!r} is {found!r}; it must be a function or a class")
    return found


def _find(name: str) -> Any:
    """What stands in a module under the last parts of a name, the module's name being as long as can be."""
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module or "." not in module:
            raise
        found = _find(module)
    if hasattr(found, attribute):
        return getattr(found, attribute)
    try:  # a module itself, or a name that has moved, which the import system knows
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise AttributeError(f"{module} has no {attribute}") from None
