"""Real images to compare samples with: a folder, an array file, an MNIST file or the teacher's own data set.

Every source is a sequence of images in [-1, 1] that reads what it is asked for, so that no set has to fit in memory.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from solverdistill.support.arrays import read_npz
from solverdistill.support.limits import Allowance, first_sentence

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
IDX_IMAGES = 0x00000803  # magic number: unsigned bytes in three dimensions


class RealImages(Protocol):
    """A set of real images."""

    name: str

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Tensor:
        """Images in [-1, 1]. Shape: (len(indices), channels, height, width), float32."""
        ...


class ArrayImages:
    """Images of an array in memory or mapped from a file.

    Args:
        name: Name of the set in tables.
        array: Bytes of shape (images, height, width), (images, height, width, channels) or (images, channels, height,
            width), or floats in [-1, 1] of shape (images, channels, height, width).
    Raises:
        ValueError: the array has another shape or type.
    """

    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array
        is_bytes = str(array.dtype) in ("uint8", "torch.uint8")
        if len(array.shape) not in ((3, 4) if is_bytes else (4,)) or not (is_bytes or "float" in str(array.dtype)):
            raise ValueError(
                f"real images {name} must be bytes of shape (images, height, width[, channels]) or floats in [-1, 1] "
                f"of shape (images, channels, height, width), not {array.dtype} of shape {tuple(array.shape)}"
            )

    def __len__(self) -> int:
        return len(self.array)

    def take(self, indices: Sequence[int]) -> Tensor:
        rows = torch.as_tensor(self.array[list(indices)])
        if rows.dtype != torch.uint8:
            return rows.float()
        return _from_pixels(rows)


class FolderImages:
    """Image files of a folder and the folders below it, in the order of their names.

    Args:
        folder: The folder.
        channels: 1 reads them as grey, 3 as RGB.
    Raises:
        FileNotFoundError: there is no image.
    """

    def __init__(self, folder: Path, channels: int) -> None:
        self.name, self.mode = folder.name, "L" if channels == 1 else "RGB"
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not self.files:
            raise FileNotFoundError(f"folder {folder} holds no images ({', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._read(self.files[index]) for index in indices])

    def _read(self, path: Path) -> Tensor:
        import numpy
        from PIL import Image

        with Image.open(path) as image:
            return _from_pixels(torch.from_numpy(numpy.array(image.convert(self.mode)))[None])[0]


def open_images(place: str | Path, channels: int) -> RealImages:
    """Open a folder of images, an .npy or .npz array, or an MNIST file (idx, plain or gzipped).

    Raises:
        FileNotFoundError: there is nothing at that place.
        ValueError: the file has a format that is not known.
    """
    path = Path(place)
    if path.is_dir():
        return FolderImages(path, channels)
    if not path.is_file():
        raise FileNotFoundError(f"real images {path} do not exist: give a folder, an .npz or an MNIST file (idx[.gz])")
    if path.suffix in (".npz", ".npy"):
        return ArrayImages(path.name, _read_numpy(path))
    return ArrayImages(path.name, _read_idx(path))


def _read_numpy(path: Path) -> Any:
    import numpy

    try:
        if path.suffix == ".npy":
            return numpy.load(path, mmap_mode="r", allow_pickle=False)
        loaded = read_npz(path)
        return loaded["images"] if "images" in loaded else next(iter(loaded.values()))
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"real images {path} cannot be read: {first_sentence(error)}") from None


def _read_idx(path: Path) -> Tensor:
    """Images of LeCun's idx format: magic number and three sizes as big-endian 32-bit integers, then the bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            allowance = Allowance.of(path)
            data = stream.read(allowance.most + 1)
            allowance.take(len(data))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"real images {path} cannot be read: {error}") from None
    magic, *shape = (int.from_bytes(data[i : i + 4], "big") for i in range(0, 16, 4))
    if magic != IDX_IMAGES or len(data) != 16 + shape[0] * shape[1] * shape[2]:
        raise ValueError(f"real images {path} are no folder, .npz, .npy or MNIST image file (idx[.gz])")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=16).view(*shape)


def _from_pixels(pixels: Tensor) -> Tensor:
    """Bytes as images in [-1, 1], channels first."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.shape[1] not in (1, 3) or pixels.shape[-1] in (1, 3):
        pixels = pixels.movedim(-1, 1)
    return pixels.float() / 127.5 - 1
