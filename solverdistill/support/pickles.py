"""Read pickled files without running anything that they contain.

A pickle is a program for a small stack machine, whose only dangerous instructions are those that look a name up in a
Python module and call what they find. The reader here imports no module and answers each name from a short list:

    name                                                       what the file gets in its place
    torch_utils.persistence._reconstruct_persistent_obj        `PersistentObject`, an inert record of its state
    torch._utils._rebuild_tensor_v2, _rebuild_parameter        a tensor without gradient, its bounds checked
    torch.storage._load_from_bytes                             `torch.load(weights_only=True)` on the CPU
    collections.OrderedDict, dnnlib.util.EasyDict              a dict
    set, frozenset, torch.Size, torch dtypes, torch.device     set, frozenset, tuple, the dtype, its name
    numpy scalars and arrays of numbers                        a Python number, an array
    torch.nn.modules.*                                         a class whose instances are inert `Record`s
    anything in `INERT` (functions of the samplers' projects)  `Reference`, which is only its name

Any other name raises. The first is how the EDM code base and its descendants pickle a network: the record carries the
source code of the class, which the original loader executes and this one drops.

Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022 (the files
released with it).
"""

from __future__ import annotations

import os
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from solverdistill.support.pickle_rules import (
    INERT,
    PersistentObject,
    Record,
    Reference,
    Refused,
    lookup,
    members,
    state_of,
)

__all__ = [
    "INERT",
    "PersistentObject",
    "Record",
    "Reference",
    "file_kind",
    "read_pickle",
    "read_pickle_stream",
    "read_torch",
    "state_dict_of",
]
MAX_DEPTH = 64
MAX_MODULES = 100_000


def file_kind(path: str | os.PathLike[str]) -> str:
    """Tell by its content what a file is.

    Returns:
        "torch" (zip archive), "torch-legacy", "safetensors" or "pickle".
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"file {source} does not exist")
    with source.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"PK"):
        return "torch"
    # torch's format before 1.6 is a row of pickles, of which the first is this number.
    if head.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."):
        return "torch-legacy"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    raise ValueError(f"file {source} is neither a pickle, a torch file nor a safetensors file")


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Read a file of `torch.save` with `weights_only=True`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no torch file, or holds more than tensors and plain containers.
    """
    kind = file_kind(path)
    if kind not in ("torch", "torch-legacy"):
        raise ValueError(f"file {path} is a {kind} file and not one of torch.save")
    if kind == "torch" and not zipfile.is_zipfile(path):
        raise ValueError(f"file {path} is truncated: its archive has no end; get it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"file {path} cannot be read as plain tensors: {_first_sentence(error)}") from None


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a raw pickle, with the replacements of this module's list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no raw pickle, or names something that is not on the list.
    """
    kind = file_kind(path)
    if kind != "pickle":
        raise ValueError(f"file {path} is a {kind} file and not a raw pickle")
    with Path(path).open("rb") as stream:
        return read_pickle_stream(stream, f"file {path}")


def read_pickle_stream(stream: IO[bytes], what: str = "the pickle") -> Any:
    """Read one pickle from an open, seekable binary stream; `what` names it in messages."""
    try:
        _scan(stream)
        return _Reader(stream).load()
    except Refused as refused:
        raise ValueError(f"{what} names {refused}, which is not on the list of what may be read") from None
    except EOFError:
        raise ValueError(f"{what} is truncated; get it again") from None
    except Exception as error:  # a damaged pickle can raise anything
        cut = any(word in str(error) for word in ("truncated", "exhausted", "not enough data", "remain"))
        reason = "is truncated; get it again" if cut else f"cannot be read: {_first_sentence(error)}"
        raise ValueError(f"{what} {reason}") from None


def state_dict_of(record: Any) -> dict[str, Tensor]:
    """Rebuild the state dict of a pickled network from its records, in the order of torch.

    Raises:
        ValueError: something in it is no module or no tensor, or it nests too deeply.
    """
    found: dict[str, Tensor] = {}
    pending: list[tuple[str, Any, int]] = [("", record, 0)]
    seen = 0
    while pending:
        prefix, module, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_MODULES:
            raise ValueError(f"pickled network nests deeper than {MAX_DEPTH} levels or has over {MAX_MODULES} modules")
        skipped = state_of(module, prefix).get("_non_persistent_buffers_set") or ()
        tensors = {**members(module, "_parameters"), **members(module, "_buffers")}
        for name, value in tensors.items():
            if value is None or name in skipped:
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"pickled network holds {prefix}{name}, which is no tensor")
            found[f"{prefix}{name}"] = value
        children = [(name, child) for name, child in members(module, "_modules").items() if child is not None]
        pending.extend((f"{prefix}{name}.", child, depth + 1) for name, child in reversed(children))
    return found


def _scan(stream: IO[bytes]) -> None:
    """Refuse instructions that go around the list, or that would fill the memory with an empty table."""
    start = stream.tell()
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if instruction.name in ("EXT1", "EXT2", "EXT4"):
            raise Refused("a registered extension")
        if instruction.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > count:
            raise Refused("a memory cell out of order")
    stream.seek(start)


class _Reader(pickle.Unpickler):
    """Unpickler that answers names from the list and loads nothing else."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream, fix_imports=False)
        self._records: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        return lookup(module, name, self._records)

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a persistent id")


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:160].rstrip(".")
