"""The list of names that a pickle may mention, and what stands in their place; see `solverdistill.support.pickles`.

Nothing here can be changed by a file: it gets immutable types, functions without attributes, and classes and functions
that are made anew for it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solverdistill.support.limits import Allowance, shown
from solverdistill.support.pickle_reader import Refused
from solverdistill.support.torch_files import LEGACY, scan_legacy

# Modules whose names become references: the samplers of EPD, AMED, AdaSDE and DyWeight.
INERT = ("solvers", "solver_utils", "solvers_amed")
NUMERIC = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split())


@dataclass(frozen=True)
class Reference:
    """A function or class that a file mentions; only its name is kept."""

    name: str


@dataclass(frozen=True)
class PersistentObject:
    """An object of a class whose source code lies in the file; the code is neither kept nor run.

    Args:
        class_name: Name of its class.
        state: Its attributes.
    """

    class_name: str
    state: dict[str, Any]

    def __repr__(self) -> str:
        return f"PersistentObject({self.class_name})"

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """Keyword arguments that it was made with; ValueError if the file holds none."""
        return members(self, "_init_kwargs")

    def part(self, kind: str) -> dict[str, Any]:
        """Its "parameters", "buffers" or "modules" by name, of this level only."""
        return members(self, f"_{kind}")


class Record:
    """Stands for an instance of a class that is not imported.

    Attributes:
        class_name: Full name of that class.
        args: Positional arguments that the file makes it with.
        state: What the file sets on it, None for nothing.
    """

    __slots__ = ("args", "state")
    class_name = ""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"Record({self.class_name})"


def state_of(module: Any, prefix: str) -> dict[str, Any]:
    """State of a module's record; ValueError if it is none."""
    state = module.state if isinstance(module, (PersistentObject, Record)) else None
    if not isinstance(state, dict):
        raise ValueError(f"pickled network holds {prefix.rstrip('.') or 'an object'}, which is no module")
    return state


def members(module: Any, kind: str) -> dict[str, Any]:
    """Members of one kind ("_parameters", "_buffers", "_modules") of a module's record, by name."""
    found = state_of(module, kind).get(kind)
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"pickled network has {kind} that are no dict")
    return dict(found)


class _Dict(dict[Any, Any]):
    """A dict that ignores the attributes which a file sets on it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        del state


class _Function:
    """A callable on which a file can set nothing."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a state for a function")


class _Array(np.ndarray):
    """An array of numbers that checks what a file fills it with."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        kind = _numeric(dtype)
        if not isinstance(data, bytes) or len(data) != math.prod(_sizes(shape)) * kind.itemsize:
            raise Refused("a numpy array whose data do not fill its shape")
        checked: Any = (1, shape, kind, fortran is True, data)
        super().__setstate__(checked)


def _persistent(meta: Any) -> PersistentObject:
    known = isinstance(meta, dict) and meta.get("type") == "class" and isinstance(meta.get("state"), dict)
    if not known or not isinstance(meta.get("class_name"), str):
        raise Refused("a persistent object of unknown form")
    return PersistentObject(meta["class_name"], meta["state"])


def _storage(data: Any) -> Any:
    if not isinstance(data, bytes) or not data.startswith(LEGACY):
        raise Refused("a storage of unknown form")
    scan_legacy(io.BytesIO(data), Allowance("a storage", len(data)))
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    raw = getattr(storage, "_untyped_storage", None)
    if not isinstance(raw, torch.UntypedStorage):
        raise Refused("a tensor without storage")
    if len(_sizes(size)) != len(_sizes(stride)) or _sizes((offset,))[0] < 0:
        raise Refused("a tensor of impossible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    empty = torch.empty(0, dtype=storage.dtype)
    if 0 not in size and last >= raw.nbytes() // empty.itemsize:
        raise Refused("a tensor that reaches beyond its storage")
    return empty.set_(raw, offset, size, stride)


def _sizes(values: Any) -> tuple[int, ...]:
    """The sizes, strides or offset of an array, which are whole numbers from 0 on."""
    if not isinstance(values, tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise Refused("a tensor of impossible shape")
    return values


def _numeric(record: Any) -> np.dtype[Any]:
    code = record.args[0] if isinstance(record, Record) and record.args else None
    if not isinstance(code, str) or code not in NUMERIC:
        raise Refused(f"numpy.dtype({shown(code)})")
    order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "<"
    return np.dtype(code).newbyteorder(">" if isinstance(order, str) and order == ">" else "<")


def _scalar(dtype: Any, data: bytes) -> Any:
    return np.frombuffer(data, _numeric(dtype), 1)[0].item()


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("a parameter that is no tensor")
    return data


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or not isinstance(encoding, str):
        raise Refused("bytes of unknown form")
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _device(*args: Any) -> str:
    if not all(isinstance(value, (str, int)) for value in args):
        raise Refused("a device of unknown form")
    return ":".join(shown(value).strip("'") for value in args)


FUNCTIONS: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.device": _device,
    "torch.Size": lambda values=(): tuple(values),
    "_codecs.encode": _bytes,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    FUNCTIONS[f"{_module}.scalar"] = _scalar
    FUNCTIONS[f"{_module}._reconstruct"] = lambda *_: np.ndarray.__new__(_Array, (0,), np.int8)
TYPES: dict[str, type] = {
    "collections.OrderedDict": _Dict,
    "dnnlib.util.EasyDict": _Dict,
    "dnnlib.EasyDict": _Dict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "__builtin__.set": set,
    "__builtin__.frozenset": frozenset,
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
RECORDS = ("numpy.dtype", "numpy.ndarray")
STATEFUL = (Record, _Dict, _Array)  # what takes a state from a file


def lookup(module: str, name: str, records: dict[str, type[Record]]) -> Any:
    """What a file gets for a name; `records` keeps the classes made for this file.

    Raises:
        Refused: the name is not on the list.
    """
    full = f"{module}.{name}"
    if full in TYPES:
        return TYPES[full]
    if full in FUNCTIONS:
        return _Function(FUNCTIONS[full])
    if full in DTYPES:
        return DTYPES[full]
    if full in RECORDS or module.startswith("torch.nn.modules."):
        if full not in records:
            records[full] = type("Record", (Record,), {"__slots__": (), "class_name": full})
        return records[full]
    if module.split(".")[0] in INERT:
        return Reference(full)
    raise Refused(full)
