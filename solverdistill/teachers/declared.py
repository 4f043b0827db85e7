"""What a configuration declares of a network, held against the files with its weights before any of it takes memory.

The network is built without memory for its tensors. Each module and tensor that it registers is counted on the way, so
that a configuration of a billion layers, or of one layer of a billion rows, is refused when it has asked for more than
its weight files can hold, and not when the machine is full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from solverdistill.support.limits import Allowance, Oversized, first_sentence, shown

LARGEST = 1 << 20  # of any whole number in a configuration
MODULES = 16  # for every tensor of the weight files; layers without tensors count as well
FEW = 1000  # modules that any network may have
SIZES = ("sample_size", "pos_embed_max_size")
SINGLE = 4  # bytes


def check_declared(folder: Path, config: Mapping[str, Any], make: Callable[[], nn.Module]) -> None:
    """Build a network on the meta device and refuse it where its weight files cannot be those of it.

    Args:
        folder: Folder of its .safetensors files, or the file.
        config: Its configuration.
        make: Makes it.
    Raises:
        ValueError: it cannot be made, or is larger than its files allow.
    """
    allowance = Allowance.of(folder, f"the weights in {folder}")
    _check_numbers(folder, config)
    for name in SIZES:  # of a table of positions, which some networks compute and do not store
        said = [config.get(key) for key in (name, name, "num_attention_heads", "attention_head_dim")]
        numbers = [value for value in said if isinstance(value, int)]
        if len(numbers) == len(said):
            Allowance.of(folder, f"the weights in {folder}").take(math.prod(numbers) * SINGLE)
    tensors = count_tensors(folder)
    try:
        with counted(allowance, tensors), torch.device("meta"):
            make()
    except Oversized:
        raise
    except Exception as error:  # the libraries check little of what a configuration says
        raise ValueError(f"the network that {folder} declares cannot be built: {first_sentence(error)}") from None


@contextmanager
def counted(allowance: Allowance, tensors: int) -> Iterator[None]:
    """Within the block, modules and tensors that register anywhere are counted.

    Raises:
        Oversized: the tensors need more memory than the allowance has, or there are too many modules for the number
            of tensors in the files.
    """
    most, met = FEW + MODULES * tensors, 0

    def on_module(*_: Any) -> None:
        nonlocal met
        met += 1
        if met > most:
            raise Oversized(f"{allowance.what} hold {tensors} tensors and a network of over {most} modules is declared")

    def on_tensor(module: nn.Module, name: str, value: Any) -> None:
        on_module()
        allowance.take(value.numel() * SINGLE if isinstance(value, torch.Tensor) else 0)

    hooks = [
        registration.register_module_module_registration_hook(on_module),
        registration.register_module_parameter_registration_hook(on_tensor),
        registration.register_module_buffer_registration_hook(on_tensor),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def count_tensors(place: Path) -> int:
    """Number of tensors in a safetensors file, or in all of a folder.

    Raises:
        ValueError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in place.glob("*.safetensors") if place.is_dir() else (place,):
        try:
            with safe_open(path, framework="pt") as stream:
                count += len(list(stream.keys()))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"file {path} cannot be read, get it again: {first_sentence(error)}") from None
    return count


def _check_numbers(folder: Path, config: Mapping[str, Any]) -> None:
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"config.json of {folder} says {name} is {shown(value)}, more than any network has")
        if isinstance(value, Mapping):
            pending.extend((f"{name}.{key}", item) for key, item in value.items())
        elif isinstance(value, (list, tuple)):
            pending.extend((name, item) for item in value)
