"""A second view of a module on the same weights, so that it can be frozen and moved while its owner trains on."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from solverdistill.support.inference import usable_in_gradients


def shared_view(network: Callable[..., Any]) -> Callable[..., Any]:
    """A frozen copy of a module, or of a method with its module, whose tensors lie in the same memory.

    Mode, gradient flags, device and dtype of the copy are its own. Weights that are changed in place, as by an
    optimizer, change in both. Other functions are returned as they are.

    Raises:
        ValueError: the module refuses to be copied or frozen.
    """
    owner = getattr(network, "__self__", None)
    if isinstance(network, types.MethodType) and isinstance(owner, nn.Module):
        return types.MethodType(network.__func__, _copied(owner))
    return _copied(network) if isinstance(network, nn.Module) else network


def _copied(module: nn.Module) -> nn.Module:
    shared: dict[int, Any] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers, vars(part)):
            tensors: list[Any] = [value for value in store.values() if type(value) in (nn.Parameter, Tensor)]
            shared |= {id(value): _alias(value) for value in tensors}
    try:
        return copy.deepcopy(module, shared).eval().requires_grad_(False)
    except Exception as error:
        raise ValueError(
            f"a {type(module).__name__} cannot be copied and frozen ({error}); call its eval() "
            "and requires_grad_(False) and wrap a function that calls it"
        ) from error


def _alias(value: Tensor) -> Tensor:
    alias = usable_in_gradients(value.detach())
    return nn.Parameter(alias, requires_grad=False) if isinstance(value, nn.Parameter) else alias
