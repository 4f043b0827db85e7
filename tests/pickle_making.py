"""Writes pickles that mention modules which are not installed, in the form of the files that EDM released."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"


class Call:
    """Pickled as the call of the function of some name."""

    def __init__(self, name: str, *args: Any) -> None:
        self.name, self.args = name, args

    def __reduce__(self) -> tuple[Any, ...]:
        return mentioned(self.name), self.args


@contextmanager
def pretended(*names: str) -> Iterator[None]:
    """For a while, let functions of these full names exist, so that a pickle can mention them."""
    made: list[str] = []
    for full in names:
        module, _, name = full.rpartition(".")
        pieces = module.split(".")
        for parent in (".".join(pieces[: k + 1]) for k in range(len(pieces))):
            if parent not in sys.modules:
                sys.modules[parent] = ModuleType(parent)
                made.append(parent)

        def function(*args: Any) -> None:
            raise AssertionError("only its name is used")

        function.__module__, function.__qualname__ = module, name
        setattr(sys.modules[module], name, function)
    try:
        yield
    finally:
        for module in made:
            del sys.modules[module]


def mentioned(full: str) -> Any:
    """The function of a full name, while it is pretended to exist."""
    module, _, name = full.rpartition(".")
    return getattr(sys.modules[module], name)


def dumps(value: Any, *names: str, protocol: int = 4) -> bytes:
    """Pickle a value, or what a function returns, that mentions the given full names."""
    with pretended(*names):
        return pickle.dumps(value() if callable(value) else value, protocol=protocol)


def persistent(class_name: Any, state: Any, kind: str = "class") -> Call:
    """An object of a class whose source code goes along (here a line that must never run)."""
    source = "raise SystemExit('source code was run')"
    meta = {"type": kind, "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Call(RECONSTRUCT, meta)


def as_persistent(module: nn.Module, class_name: str, init: dict[str, Any], model_init: dict[str, Any]) -> Call:
    """Turn a network into nested persistent objects, as the released pickles have them.

    Args:
        module: Preconditioned network; its submodule `model` gets `model_init`.
        class_name: Class of the outer object.
        init: Keyword arguments that the outer object claims to have been made with.
        model_init: Those of the inner one, with its class under "class_name".
    """
    state: dict[str, Any] = {"training": False, "_init_args": (), "_init_kwargs": init}
    state["_parameters"] = OrderedDict((k, v) for k, v in module._parameters.items())
    state["_buffers"] = OrderedDict((k, v) for k, v in module._buffers.items())
    state["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    children: dict[str, Any] = OrderedDict()
    for name, child in module._modules.items():
        if isinstance(child, nn.ModuleDict):
            whole = nn.ModuleDict()
            whole._modules = OrderedDict((k, as_persistent(v, "UNetBlock", {}, {})) for k, v in child.items())
            children[name] = whole
        elif child is not None:
            inner = {k: v for k, v in model_init.items() if k != "class_name"} if name == "model" else {}
            children[name] = as_persistent(child, model_init.get("class_name", "Layer"), inner, {})
    state["_modules"] = children
    return persistent(class_name, state)


def write_checkpoint(path: Path, network: Call) -> Path:
    """Write a checkpoint with the keys of a released one."""
    content = {"ema": network, "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {"path": "images"}}
    path.write_bytes(dumps(content, RECONSTRUCT))
    return path
