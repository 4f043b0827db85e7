"""Gradients inside ComfyUI, which loads and prepares everything in torch's inference mode.

What was made there can be read but not be kept for a backward pass. Another tensor on the same memory can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def differentiable(model: nn.Module, conds: dict[str, list[dict[str, Any]]]) -> Iterator[None]:
    """Let a prepared model and its conditions take part in gradients; the model gets its own tensors back.

    Args:
        model: A model whose parameters nobody trains.
        conds: ComfyUI's conditions, by name.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for module in model.modules():
        for group in (module._parameters, module._buffers):
            for name, value in group.items():
                if value is not None and value.is_inference():
                    kept.append((group, name, value))
                    other = _same_memory(value)
                    group[name] = nn.Parameter(other, False) if isinstance(value, nn.Parameter) else other
    for cond in (one for several in conds.values() for one in several):
        for entry in cond.get("model_conds", {}).values():
            if isinstance(getattr(entry, "cond", None), Tensor) and entry.cond.is_inference():
                entry.cond = _same_memory(entry.cond)
    try:
        yield
    finally:
        for group, name, value in kept:
            group[name] = value


def _same_memory(value: Tensor) -> Tensor:
    """An ordinary tensor on the memory of one of inference mode."""
    with torch.inference_mode(False):
        other = torch.empty(0, dtype=value.dtype, device=value.device)
        return other.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
