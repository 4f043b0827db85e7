"""How what a pipeline makes of one prompt becomes what it makes of several.

A rule is learned from an example: the result of one prompt, and that of a batch of two of it. A tensor is shared, or
has the prompts one after the other along some dimension, in one or more blocks (negative prompts, then prompts); lists
are joined the same way. What no rule explains is refused, and the pipeline is then asked about one sample at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Join = Callable[[Sequence[Any]], Any]


class Unexplained(Exception):
    """A batch is not what its samples are one by one."""


def learn(one: Any, two: Any) -> Join:
    """The rule that makes the result of a batch out of those of its samples.

    Args:
        one: Result of one sample: tensors, lists, tuples, mappings and plain values.
        two: Result of a batch of two of that sample.
    Raises:
        Unexplained: there is none.
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return _learn_tensor(one, two)
    if isinstance(one, (list, tuple)) and type(one) is type(two):
        if isinstance(one, list) and one and len(two) == 2 * len(one):
            return _learn_list(one, two)
        if len(one) == len(two):
            rules, kind = [learn(a, b) for a, b in zip(one, two, strict=True)], type(one)
            made = kind._make if hasattr(kind, "_make") else kind  # pyright: ignore[reportAttributeAccessIssue]
            return lambda values: made(
                [rule(parts) for rule, parts in zip(rules, zip(*values, strict=True), strict=True)]
            )
    if isinstance(one, Mapping) and isinstance(two, Mapping) and one.keys() == two.keys():
        by_name, make = {name: learn(one[name], two[name]) for name in one}, type(one)
        return lambda values: make(**{name: rule([v[name] for v in values]) for name, rule in by_name.items()})
    if _same(one, two):
        return _first
    raise Unexplained(f"{type(one).__name__} {_short(one)} became {_short(two)}")


def signature(value: Any) -> Any:
    """What two results must have in common to be joined: structure, shapes, and the values of all that is no tensor."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value):
        return len(value), value[0].dtype
    if isinstance(value, (list, tuple)):
        return tuple(signature(item) for item in value)
    if isinstance(value, Mapping):
        return tuple((name, signature(item)) for name, item in value.items())
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in tensors_of(item)] if isinstance(value, (list, tuple)) else []


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same result with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        made: Any = type(value)
        return made(**{name: mapped(item, change) for name, item in value.items()})
    if isinstance(value, (list, tuple)):
        kind: Any = type(value)
        items = [mapped(item, change) for item in value]
        return kind._make(items) if hasattr(kind, "_make") else kind(items)
    return value


def digest_of(value: Any) -> str:
    """SHA-256 of a value: of tensors their bytes, of pictures theirs, of other objects what they are called."""
    digest = hashlib.sha256()
    for tensor in tensors_of(value):
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    if hasattr(value, "tobytes"):
        digest.update(value.tobytes())
    digest.update(repr(signature(value)).encode())
    return digest.hexdigest()


def _learn_tensor(one: Tensor, two: Tensor) -> Join:
    if one.shape == two.shape:
        if torch.equal(one, two):
            return _first
        raise Unexplained(f"a tensor of shape {tuple(one.shape)} has other values in a batch")
    if one.ndim == two.ndim:
        for dim in range(one.ndim):
            size = one.shape[dim]
            if (
                two.shape[dim] == 2 * size
                and one.shape[:dim] + one.shape[dim + 1 :] == two.shape[:dim] + two.shape[dim + 1 :]
            ):
                for blocks in (1, 2, 3):
                    if size % blocks == 0 and _close(_interleave([one, one], dim, blocks), two):
                        return lambda values, d=dim, k=blocks: _interleave(values, d, k)
    raise Unexplained(f"a tensor of shape {tuple(one.shape)} became {tuple(two.shape)}")


def _interleave(values: Sequence[Tensor], dim: int, blocks: int) -> Tensor:
    """Block 0 of every value, then block 1 of every value."""
    parts = [value.chunk(blocks, dim) for value in values]
    return torch.cat([part[k] for k in range(blocks) for part in parts], dim)


def _learn_list(one: list[Any], two: list[Any]) -> Join:
    for blocks in (1, 2, 3):
        if len(one) % blocks:
            continue

        def join(values: Sequence[list[Any]], k: int = blocks) -> list[Any]:
            size = len(values[0]) // k
            return [item for block in range(k) for value in values for item in value[block * size : (block + 1) * size]]

        if all(_same(a, b) for a, b in zip(join([one, one]), two, strict=True)):
            return join
    raise Unexplained(f"a list of {len(one)} became {len(two)} others")


def _first(values: Sequence[Any]) -> Any:
    """What all samples share."""
    first = values[0]
    if isinstance(first, Tensor) and not all(value is first or torch.equal(value, first) for value in values[1:]):
        raise Unexplained("a tensor that samples share differs between them")
    return first


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.shape == two.shape and _close(one, two)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(_same, one, two))
    try:
        return one is two or bool(one == two)
    except (RuntimeError, ValueError):
        return False


def _close(one: Tensor, two: Tensor) -> bool:
    """Equal but for the rounding of a batched network."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, two)
    fine = one.dtype in (torch.float32, torch.float64)
    size = float(one.abs().max()) if one.numel() else 0.0
    return float((one.double() - two.double()).abs().max() if one.numel() else 0.0) <= (1e-4 if fine else 3e-2) * size


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:40]
