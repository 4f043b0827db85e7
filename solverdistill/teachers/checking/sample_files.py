"""Reads a few samples from a file or a folder of images; runs nothing that is in a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from solverdistill.support.arrays import check_size, plain_problem, read_npy, read_safetensors
from solverdistill.support.limits import Allowance
from solverdistill.support.pickles import read_torch

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def read_samples(path: str, shape: tuple[int, ...], count: int) -> Tensor:
    """Read the first samples of a .npy, .pt or .safetensors file of one tensor, or of a folder of images.

    8-bit integers become numbers in [-1, 1]; channels that come last are moved to the front.

    Args:
        path: The file or folder.
        shape: Shape of one sample; () reads labels.
        count: How many samples to take at most.
    Returns:
        float32 samples of shape (samples, *shape), int64 for labels.
    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds something else than samples of the shape.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"samples {path} do not exist")
    values = _read_images(place, shape, count) if place.is_dir() else _read_tensor(place)
    values = values[:count]
    if not shape:
        return values.long()
    last = (*shape[1:], shape[0])
    if tuple(values.shape[1:]) == last != shape:
        values = values.movedim(-1, 1)
    if len(shape) == 3 and shape[0] == 1 and tuple(values.shape[1:]) == shape[1:]:
        values = values[:, None]
    if tuple(values.shape[1:]) != shape or len(values) < 2:
        raise ValueError(f"{path} holds {tuple(values.shape)}; at least 2 samples of shape {shape} are needed")
    return values.float() / 127.5 - 1 if values.dtype == torch.uint8 else values.float()


def _read_tensor(place: Path) -> Tensor:
    if place.suffix == ".npy":
        array = read_npy(place)
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise ValueError(f"samples {place} hold {array.dtype} values, which are no numbers of up to 8 bytes")
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if place.suffix == ".safetensors":
        tensors = list(read_safetensors(place).values())
    elif place.suffix in (".pt", ".pth"):
        loaded = read_torch(place)
        tensors = [loaded] if isinstance(loaded, Tensor) else []
    else:
        raise ValueError(f"samples {place} must be .npy, .pt, .safetensors or a folder of images")
    if len(tensors) != 1:
        raise ValueError(f"samples {place} must hold one tensor")
    if problem := plain_problem(tensors[0]):
        raise ValueError(f"samples {place} hold a tensor that {problem}")
    check_size(Allowance.of(place), tensors, 4)
    return tensors[0]


def _read_images(folder: Path, shape: tuple[int, ...], count: int) -> Tensor:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)[:count]
    if not files or len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"{folder} has no images, or the teacher's samples of shape {shape} are none")
    import numpy as np
    from PIL import Image

    mode, images = "L" if shape[0] == 1 else "RGB", []
    for file in files:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert(mode).resize((shape[2], shape[1]), Image.Resampling.BICUBIC))
        images.append(torch.from_numpy(pixels.copy()).view(shape[1], shape[2], shape[0]).movedim(-1, 0))
    return torch.stack(images)
