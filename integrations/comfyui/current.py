"""The nodes for ComfyUI's current interface: ComfyNode classes with a Schema, given by an extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import ComfyExtension, io  # pyright: ignore[reportMissingImports]

from .description import CATEGORY, Input, Node

TYPES = {
    "MODEL": io.Model,
    "CONDITIONING": io.Conditioning,
    "LATENT": io.Latent,
    "SAMPLER": io.Sampler,
    "SIGMAS": io.Sigmas,
    "STRING": io.String,
    "INT": io.Int,
    "FLOAT": io.Float,
    "BOOLEAN": io.Boolean,
    "COMBO": io.Combo,
}


def make_extension(nodes: Sequence[Node]) -> Any:
    """The extension that gives the nodes."""
    classes = [make_class(node) for node in nodes]

    class Extension(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            return classes

    return Extension()


def make_class(node: Node) -> type:
    """The class of a node."""

    def define_schema(cls: type) -> Any:
        outputs = [TYPES[one.kind].Output(display_name=one.name, tooltip=one.tooltip) for one in node.outputs]
        facts = {"node_id": node.name, "display_name": node.title, "category": CATEGORY, "description": node.about}
        inputs = [_declared(one) for one in node.inputs]
        return io.Schema(**facts, inputs=inputs, outputs=outputs, is_output_node=node.ends)

    def execute(cls: type, **inputs: Any) -> Any:
        return io.NodeOutput(*node.run(**inputs))

    members: dict[str, Any] = {
        "__doc__": node.about,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
    }
    check, digest = node.check, node.digest
    if check is not None:

        def validate_inputs(cls: type, file: str | None = None) -> bool | str:
            return check(file)

        members["validate_inputs"] = classmethod(validate_inputs)
    if digest is not None:

        def fingerprint_inputs(cls: type, file: str, **others: Any) -> str:
            return digest(file)

        members["fingerprint_inputs"] = classmethod(fingerprint_inputs)
    return type(node.name, (io.ComfyNode,), members)


def _declared(one: Input) -> Any:
    options = one.options() if one.choices is None else {**one.options(), "options": one.choices()}
    return TYPES[one.kind].Input(one.name, optional=one.optional, **options)
