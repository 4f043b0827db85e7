"""Out of `torch.inference_mode`, in which nodes of ComfyUI and many services run: fits need gradients.

Tensors made inside it are marked for good and no gradient goes through an operation on them, wherever it happens. So
whoever leaves the mode also has to replace the weights of modules that were built or loaded inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def with_gradients() -> Iterator[None]:
    """Gradients are recorded here, whatever the caller switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def usable_in_gradients(value: Tensor) -> Tensor:
    """The tensor itself, or a copy of one that was made in inference mode; to be called outside of it."""
    return value.clone() if value.is_inference() else value


def replace_inference_weights(module: nn.Module) -> None:
    """Put copies in the place of parameters and buffers that were made in inference mode; shared ones stay shared.

    To be called outside of it. Nothing is copied of a module that was built outside.
    """
    copies: dict[int, Tensor] = {}
    for part in module.modules():
        stores: list[dict[str, Any]] = [part._parameters, part._buffers]
        for store in stores:
            for name, value in store.items():
                if value is None or not value.is_inference():
                    continue
                if id(value) not in copies:
                    copy = value.detach().clone()
                    is_weight = isinstance(value, nn.Parameter)
                    copies[id(value)] = nn.Parameter(copy, requires_grad=value.requires_grad) if is_weight else copy
                store[name] = copies[id(value)]
