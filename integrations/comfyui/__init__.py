"""ComfyUI nodes that play and distil a solver.json; this folder goes into ComfyUI/custom_nodes as `solverdistill`.

The current node interface is taken where there is one. ComfyUI looks for NODE_CLASS_MAPPINGS first, so only one of the
two is defined.
"""

from __future__ import annotations

from typing import Any

from .loading import register_folder
from .nodes import NODES

register_folder()
try:
    from .current import make_extension
except ImportError:  # a ComfyUI of before it
    from .classic import make_class

    NODE_CLASS_MAPPINGS = {node.name: make_class(node) for node in NODES}
    NODE_DISPLAY_NAME_MAPPINGS = {node.name: node.title for node in NODES}
else:

    def comfy_entrypoint() -> Any:
        """The extension, for ComfyUI's current node interface."""
        return make_extension(NODES)
