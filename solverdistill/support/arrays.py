"""Arrays and tensors of foreign files, checked before they take memory."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from solverdistill.support.limits import Allowance, first_sentence, open_archive

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """All arrays of an .npz file.

    Raises:
        ValueError: it is damaged, would expand to more than its size allows, or holds Python objects.
    """
    found = {}
    with open_archive(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                with archive.open(member) as stream:
                    found[member.filename[:-4]] = _read_array(stream, f"{member.filename} of {path}", member.file_size)
    return found


def read_npy(path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    """The array of an .npy file.

    Raises:
        ValueError: it is damaged, or holds Python objects.
    """
    with Path(path).open("rb") as stream:
        return _read_array(stream, str(path), Path(path).stat().st_size)


def _read_array(stream: IO[bytes], what: str, size: int) -> np.ndarray[Any, Any]:
    """An array whose header is believed only as far as its data reach."""
    try:
        header = HEADERS.get(np.lib.format.read_magic(stream))
        if header is None:
            raise ValueError("its version is unknown")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the header was written by an old Python
            shape, fortran, dtype = header(stream)
        if dtype.hasobject or not dtype.itemsize:
            raise ValueError("it holds Python objects, or nothing")
        needed = math.prod(shape) * dtype.itemsize
        if needed > size or min(shape, default=0) < 0:
            raise ValueError(f"its header asks for {needed} bytes and it has fewer")
        data = stream.read(needed)
        if len(data) != needed:
            raise ValueError("it is truncated")
        flat = np.frombuffer(data, dtype, math.prod(shape)) if needed else np.zeros(math.prod(shape), dtype)
        return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    except Exception as error:  # a damaged header can raise anything
        raise ValueError(f"array {what} cannot be read: {first_sentence(error)}") from None


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a safetensors file, which takes no more memory than the file.

    Raises:
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"file {path} cannot be read, get it again: {first_sentence(error)}") from None


def plain_problem(value: Tensor) -> str | None:
    """Say in a clause why a tensor of a file is no plain array of numbers, or None."""
    if value.layout is not torch.strided or value.is_nested:
        return "is sparse or nested"
    if value.is_quantized:
        return "is quantised"
    if value.is_meta:
        return "has no data"
    return "is complex" if value.is_complex() else None


def check_size(allowance: Allowance, tensors: Iterable[Tensor], itemsize: int) -> None:
    """Check copies that are about to be made: a tensor's strides may repeat a few bytes without end.

    Raises:
        Oversized: they would take more than the allowance of their file.
    """
    for value in tensors:
        allowance.take(value.numel() * itemsize)


def float64_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a file's tensors in float64.

    Raises:
        ValueError: one of them is no plain array of numbers, or the copies would take more memory than the file's size
            allows.
    """
    for name, value in tensors.items():
        if problem := plain_problem(value):
            raise ValueError(f"file {path} holds {name}, which {problem}")
    check_size(Allowance.of(path), tensors.values(), 8)
    return {name: value.detach().double() for name, value in tensors.items()}
