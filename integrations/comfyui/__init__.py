"""ComfyUI nodes that play a solver.json: copy or link this folder into ComfyUI/custom_nodes as `solverdistill`."""

from __future__ import annotations

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
