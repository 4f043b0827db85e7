"""What the nodes are, said once: `classic` and `current` make ComfyUI's two kinds of node classes from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CATEGORY = "sampling/custom_sampling/learned"


@dataclass(frozen=True)
class Input:
    """An input of a node.

    Args:
        name: Its name, which is the argument's.
        kind: ComfyUI's name of its type; "COMBO" for one of `choices`.
        tooltip: What it is, for people.
        default: Of a widget.
        choices: Options of a combo, asked for whenever the interface asks for them.
        limits: Smallest value, largest value and step of a number.
        optional: Whether it may be left open.
    """

    name: str
    kind: str
    tooltip: str
    default: Any = None
    choices: Callable[[], list[str]] | None = None
    limits: tuple[float, float, float] | None = None
    optional: bool = False

    def options(self) -> dict[str, Any]:
        """What both interfaces are told beside name and type."""
        told: dict[str, Any] = {"tooltip": self.tooltip}
        if self.default is not None:
            told["default"] = self.default
        if self.limits is not None:
            told.update(zip(("min", "max", "step"), self.limits, strict=True))
        if self.kind == "INT":
            told["control_after_generate"] = False  # else a seed changes with every run, and what it made is made anew
        return told


@dataclass(frozen=True)
class Output:
    """An output of a node: name, ComfyUI's name of its type, what it is."""

    name: str
    kind: str
    tooltip: str


@dataclass(frozen=True)
class Node:
    """A node.

    Args:
        name: ComfyUI's id of it.
        title: What people see.
        about: A sentence or two about it.
        run: From inputs by name to the outputs.
        inputs: In their order.
        outputs: In their order.
        check: Whether the input `file` can be used, or the sentence why not.
        digest: Changes when what the input `file` names does.
        ends: Whether it is worth running without anything behind it.
    """

    name: str
    title: str
    about: str
    run: Callable[..., tuple[Any, ...]]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    check: Callable[[str | None], bool | str] | None = None
    digest: Callable[[str], str] | None = None
    ends: bool = field(default=False)
