"""Files of `torch.save`: looked through for what they would expand to, then read by torch with `weights_only=True`."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from solverdistill.support.limits import Allowance, first_sentence, is_archive, open_archive
from solverdistill.support.pickle_reader import Reader, scan

# torch's format before 1.6 is a row of pickles, of which the first is this number.
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_PICKLES = 5  # that number, the protocol, the machine, the object, the names of its storages


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
    if head.startswith(LEGACY):
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
        ValueError: it is truncated, no torch file, would expand to more than its size allows, or holds more than
            tensors and plain containers.
    """
    kind, path = file_kind(path), Path(path)
    if kind not in ("torch", "torch-legacy"):
        raise ValueError(f"file {path} is a {kind} file and not one of torch.save")
    if kind == "torch" and not is_archive(path):
        raise ValueError(f"file {path} is truncated: its archive has no end; get it again")
    allowance = Allowance.of(path)
    try:
        if kind == "torch":
            with open_archive(path) as archive:
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        with archive.open(name) as stream:
                            _scan_pickle(stream, allowance)
        else:
            with mapped(path) as stream:
                scan_legacy(stream, allowance)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"file {path} cannot be read as plain tensors: {first_sentence(error)}") from None


@contextmanager
def mapped(path: Path) -> Iterator[IO[bytes]]:
    """A file as a stream that never makes room for more than there is, whatever length is asked for."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content  # pyright: ignore[reportReturnType]  (read, readline, seek and tell are what is used)


def scan_legacy(stream: IO[bytes], allowance: Allowance) -> None:
    """Count what the pickles at the beginning of a file in torch's old format are made of.

    Raises:
        Exception: they are too much, or damaged.
    """
    for _ in range(LEGACY_PICKLES):
        _scan_pickle(stream, allowance)


def _scan_pickle(stream: IO[bytes], allowance: Allowance) -> None:
    """Make a pickle of inert stand-ins, which visits the objects that torch would visit, and let it go."""

    def storage(pid: Any) -> _StandIn:
        size = pid[4] if isinstance(pid, tuple) and len(pid) > 4 else 0
        allowance.take(size if isinstance(size, int) else 0)
        return _StandIn()

    scan(stream, allowance)
    Reader(stream, allowance, lambda *_: _StandIn, (_StandIn,), storage).load()


class _StandIn(dict[Any, Any]):
    """Any object of a torch file, and any class or function that makes one."""

    __slots__ = ()
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]  (types of numbers are keys)

    def __new__(cls, *args: Any) -> _StandIn:
        del args
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        del args

    def __eq__(self, other: object) -> bool:
        return self is other

    def __setstate__(self, state: Any) -> None:
        del state
