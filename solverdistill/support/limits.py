"""How much a file may ask for: every reader of foreign files is bounded by the size of what it reads.

What a file says about itself (shapes, strides, sizes in an archive, how often one object is used) costs it a few bytes
and may cost the reader the machine's memory. Readers therefore add up what a file would expand to, and refuse it here
before anything of it is made.
"""

from __future__ import annotations

import os
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXPANSION = 64  # bytes in memory for every byte of a file
ROOM = 64 << 20  # bytes that any file may expand to
MAX_OBJECTS = 500_000  # containers and their members that one file may be made of
MAX_DEPTH = 64  # lists within lists


DAMAGED = (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, UnicodeDecodeError)
DAMAGED += (struct.error, zlib.error)


class Oversized(ValueError):
    """A file that would expand to more than its size allows."""


class Allowance:
    """What is left of the memory that a file may take.

    Args:
        what: What messages call the file.
        size: Its size in bytes.
    """

    def __init__(self, what: str, size: int) -> None:
        self.what, self.size = what, size
        self.most = EXPANSION * size + ROOM
        self.taken = self.objects = 0

    @classmethod
    def of(cls, path: str | os.PathLike[str], what: str | None = None) -> Allowance:
        """The whole allowance of a file, or of a folder's safetensors files."""
        place = Path(path)
        files = place.glob("*.safetensors") if place.is_dir() else (place,)
        return cls(what or f"file {place}", sum(file.stat().st_size for file in files))

    def take(self, count: int) -> None:
        """Count bytes that are about to be made.

        Raises:
            Oversized: they are more than what is left.
        """
        self.taken += max(count, 0)
        if self.taken > self.most:
            raise Oversized(
                f"{self.what} has {self.size} bytes and would expand to {_amount(self.taken)} or more; "
                f"no file may expand to over {EXPANSION} times its size and {ROOM >> 20} MB"
            )

    def visit(self, value: Any) -> None:
        """Count an object with all that it is made of, as often as it would be met by whoever looks through it.

        Records, tensors and other objects are met but not entered; text counts in bytes as well.

        Raises:
            Oversized: the objects counted so far are more than `MAX_OBJECTS`.
        """
        pending = [value]
        self.objects += 1
        while pending:
            item = pending.pop()
            if isinstance(item, (str, bytes, bytearray)):
                self.take(len(item))
            elif isinstance(item, (dict, list, tuple, set, frozenset)):
                self.objects += len(item) * (2 if isinstance(item, dict) else 1)
                if self.objects > MAX_OBJECTS:
                    raise Oversized(f"{self.what} repeats or nests its objects so that over {MAX_OBJECTS} are met")
                pending.extend(item)
                if isinstance(item, dict):
                    pending.extend(item.values())


def _amount(count: int) -> str:
    return f"{count >> 20} MB" if count < 1 << 50 else "more than any memory"


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip archive, perhaps a damaged one."""
    try:
        return zipfile.is_zipfile(path)
    except DAMAGED:
        return True


@contextmanager
def open_archive(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose members, unpacked, are within the allowance of its file.

    Raises:
        Oversized: they are not.
        ValueError: the archive is damaged; also where the block finds a member damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            allowance = Allowance.of(path)
            for member in archive.infolist():
                allowance.take(member.file_size)
            yield archive
    except DAMAGED as error:
        raise ValueError(f"file {path} is a damaged archive, get it again: {first_sentence(error)}") from None


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother, self.maxstring, self.maxlong = 3, 60, 60, 30

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a number of {x.bit_length()} bits"


def shown(value: Any) -> str:
    """A value of a foreign file as messages show it: short, and quick to make whatever it is."""
    return " ".join(_Shown().repr(value).split())[:200]


def first_sentence(error: BaseException) -> str:
    """The beginning of a foreign library's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:160].rstrip(".")
