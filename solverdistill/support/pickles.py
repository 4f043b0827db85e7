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
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from solverdistill.support.limits import MAX_DEPTH, Allowance, Oversized, first_sentence
from solverdistill.support.pickle_reader import Reader, Refused, scan
from solverdistill.support.pickle_rules import (
    INERT,
    STATEFUL,
    PersistentObject,
    Record,
    Reference,
    lookup,
    members,
    state_of,
)
from solverdistill.support.torch_files import file_kind, mapped, read_torch

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
MAX_MODULES = 100_000


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a raw pickle, with the replacements of this module's list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no raw pickle, names something that is not on the list, or would expand to more
            than its size allows.
    """
    kind = file_kind(path)
    if kind != "pickle":
        raise ValueError(f"file {path} is a {kind} file and not a raw pickle")
    with mapped(Path(path)) as stream:
        return read_pickle_stream(stream, f"file {path}")


def read_pickle_stream(stream: IO[bytes], what: str = "the pickle") -> Any:
    """Read one pickle from an open, seekable binary stream; `what` names it in messages."""
    start, size = stream.tell(), stream.seek(0, os.SEEK_END) or stream.tell()
    stream.seek(start)
    allowance, records = Allowance(what, size - start), {}
    try:
        scan(stream, allowance)
        return Reader(stream, allowance, lambda module, name: lookup(module, name, records), STATEFUL).load()
    except Oversized:
        raise
    except Refused as refused:
        raise ValueError(f"{what} names {refused}, which is not on the list of what may be read") from None
    except EOFError:
        raise ValueError(f"{what} is truncated; get it again") from None
    except Exception as error:  # a damaged pickle can raise anything
        cut = any(word in str(error) for word in ("truncated", "exhausted", "not enough data", "remain"))
        reason = "is truncated; get it again" if cut else f"cannot be read: {first_sentence(error)}"
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
        skipped = state_of(module, prefix).get("_non_persistent_buffers_set")
        skipped = skipped if isinstance(skipped, (set, frozenset)) else ()
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
