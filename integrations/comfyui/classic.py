"""The nodes for ComfyUI's classic interface: classes with INPUT_TYPES, RETURN_TYPES and FUNCTION."""

from __future__ import annotations

from typing import Any

from .description import CATEGORY, Input, Node


def make_class(node: Node) -> type:
    """The class of a node."""

    def run(self: Any, **inputs: Any) -> tuple[Any, ...]:
        return node.run(**inputs)

    def input_types(cls: type) -> dict[str, Any]:
        groups: dict[str, Any] = {"required": {}}
        for one in node.inputs:
            groups.setdefault("optional" if one.optional else "required", {})[one.name] = _declared(one)
        return groups

    members: dict[str, Any] = {
        "__doc__": node.about,
        "CATEGORY": CATEGORY,
        "DESCRIPTION": node.about,
        "FUNCTION": "run",
        "RETURN_TYPES": tuple(output.kind for output in node.outputs),
        "RETURN_NAMES": tuple(output.name for output in node.outputs),
        "OUTPUT_TOOLTIPS": tuple(output.tooltip for output in node.outputs),
        "OUTPUT_NODE": node.ends,
        "INPUT_TYPES": classmethod(input_types),
        "run": run,
    }
    check, digest = node.check, node.digest
    if check is not None:

        def validate(cls: type, file: str | None = None) -> bool | str:
            return check(file)

        members["VALIDATE_INPUTS"] = classmethod(validate)
    if digest is not None:

        def changed(cls: type, file: str, **others: Any) -> str:
            return digest(file)

        members["IS_CHANGED"] = classmethod(changed)
    return type(node.name, (), members)


def _declared(one: Input) -> tuple[Any, dict[str, Any]]:
    return (one.kind if one.choices is None else one.choices(), one.options())
