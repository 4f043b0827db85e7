"""Type checks for values that come from configuration files and command lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

SIMPLE: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a word"),
}


def check_types(owner: str, cls: type, values: Mapping[str, Any]) -> None:
    """Check values against the annotations of a dataclass, as far as these are plain (int, float, bool, str).

    Raises:
        TypeError: a value has another type; the message names owner, field and value.
    """
    for f in fields(cls):
        annotation = str(f.type).replace(" ", "")
        names = annotation.split("|")
        if f.name not in values or not all(name in SIMPLE or name == "None" for name in names):
            continue
        value = values[f.name]
        if value is None and "None" in names:
            continue
        if not any(_fits(value, name) for name in names if name != "None"):
            wanted = " or ".join(SIMPLE[name][1] for name in names if name != "None")
            raise TypeError(f"{f.name} of {owner} must be {wanted}, not {value!r}")


def check_fields(instance: Any) -> None:
    """`check_types` on a dataclass instance's own values; call it from `__post_init__`."""
    cls = type(instance)
    check_types(cls.__name__, cls, {f.name: getattr(instance, f.name) for f in fields(cls)})


def _fits(value: Any, name: str) -> bool:
    kinds = SIMPLE[name][0]
    return isinstance(value, kinds) and (name == "bool" or not isinstance(value, bool))
