"""Checks of type and range for values that come from configuration files and command lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

LARGEST_SEED = (1 << 32) - 1  # torch's CPU generator uses no more bits

SIMPLE: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "an integer"),
    "float": ((int, float), "a finite number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a word"),
}


def check_types(owner: str, cls: type, values: Mapping[str, Any]) -> None:
    """Check values against the annotations of a dataclass, as far as these are plain (int, float, bool, str).

    A number has to be finite: no setting of ours means anything at infinity.

    Raises:
        TypeError: a value has another type or is not finite; the message names owner, field and value.
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


def check_range(
    name: str,
    value: float | None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Check a number against its bounds; None, which stands for a setting that is left open, passes.

    Raises:
        ValueError: it is outside; the message names the setting, the bound and the value.
    """
    if value is None:
        return
    bounds = (
        (least, "at least", lambda bound: value >= bound),
        (most, "at most", lambda bound: value <= bound),
        (above, "above", lambda bound: value > bound),
        (below, "below", lambda bound: value < bound),
    )
    for bound, what, holds in bounds:
        if bound is not None and not holds(bound):
            raise ValueError(f"{name} must be {what} {bound:,}, not {value}")


def check_ranges(settings: Any, where: str, *names: str, **bounds: float) -> None:
    """`check_range` on attributes of settings, called `where` and their names."""
    for name in names:
        check_range(f"{where}{name}", getattr(settings, name), **bounds)


def is_number(value: Any) -> bool:
    """Whether a value of a configuration is a finite number."""
    return _fits(value, "float")


def _fits(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "bool":
        return False
    return isinstance(value, SIMPLE[name][0]) and (not isinstance(value, float) or math.isfinite(value))
