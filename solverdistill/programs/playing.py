"""The one executor: plays a solver program on a denoiser, in training and at inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.programs.program import Coefficients, SolverProgram

Denoise = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a `callback` of `sample` sees after each evaluation of the denoiser."""

    index: int
    nfe: int
    stage: int
    x: Tensor
    alpha: float
    sigma: float
    denoised: Tensor


def sample(
    program: SolverProgram,
    denoiser: Denoise,
    noise: Tensor | Sequence[Tensor],
    cond: Any = None,
    readouts: bool = False,
    callback: Callable[[Evaluation], None] | None = None,
    stage_batch: int | None = None,
) -> Tensor:
    """Play a solver program.

    Combinations are formed in float32, or in float64 where the noise is float64, whatever dtype the network uses;
    coefficients are host scalars, so nothing waits for the device. Differentiable in the program and the inputs.

    Args:
        program: The solver.
        denoiser: ``denoiser(x, alpha, sigma, cond)`` -> denoised, with alpha and sigma of shape (batch,).
        noise: Unit-normal noise, shape (batch, ...); for a program of several inputs the list of them.
        cond: Pytree of conditions; every tensor in it with a dimension has first dimension `batch` and is repeated for
            the evaluations of a stage. Passed as fourth argument unless it is None.
        readouts: Return the state after every step, shape (readouts, batch, ...), instead of the sample alone.
        callback: Called after each evaluation (progress bars, previews).
        stage_batch: Largest batch sent to the network at once; None sends each stage whole.
    Returns:
        The sample, shape (batch, ...).
    """
    inputs = (noise,) if isinstance(noise, Tensor) else tuple(noise)
    if len(inputs) != program.inputs:
        raise ValueError(f"the program takes {program.inputs} input(s), {len(inputs)} given")
    coefficients = torch.cat([program.A, program.B], dim=1)
    rows = list(coefficients.unbind()) if coefficients.requires_grad else coefficients.tolist()
    told = list(zip(_scalars(program.alpha), _scalars(program.sigma), strict=True))
    return _play(program, rows, told, denoiser, inputs, cond, readouts, callback, stage_batch)


def sample_with(
    program: SolverProgram, coefficients: Coefficients, denoiser: Denoise, noise: Tensor, cond: Any = None
) -> Tensor:
    """Play the structure of a one-input program with other coefficients, whose values nobody looks at.

    For transforms such as `torch.func.jvp` and `vmap`, under which numbers cannot be checked or read on the host; the
    caller answers for them. Coefficients take the device and the dtype of the states.

    Args:
        program: Gives mask and stages.
        coefficients: Take the place of the program's own. Entries outside the mask are ignored.
        denoiser: As in `sample`.
        noise: Unit-normal noise. Shape: (batch, ...).
        cond: As in `sample`.
    Returns:
        The sample, shape (batch, ...).
    """
    dtype = torch.promote_types(noise.dtype, torch.float32)
    alpha, sigma, A, B = (value.to(noise.device, dtype) for value in coefficients)
    rows, told = list(torch.cat([A, B], dim=1).unbind()), list(zip(alpha.unbind(), sigma.unbind(), strict=True))
    return _play(program, rows, told, denoiser, (noise,), cond)


def _play(
    program: SolverProgram,
    rows: list[Any],
    told: list[Any],
    denoiser: Denoise,
    inputs: tuple[Tensor, ...],
    cond: Any,
    readouts: bool = False,
    callback: Callable[[Evaluation], None] | None = None,
    stage_batch: int | None = None,
) -> Tensor:
    """Play given rows (lists of numbers, or tensors) and told levels on the structure of a program."""
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    registers: list[Tensor | None] = [x.to(dtype) for x in inputs] + [None] * program.nfe
    support = program.mask.tolist()
    numbers = list(zip(program.alpha.tolist(), program.sigma.tolist(), strict=True)) if callback else []
    for stage, points in enumerate(program.stages):
        states = [_combine(rows[k], support[k], registers) for k in points]
        outputs = _evaluate(denoiser, states, [told[k] for k in points], cond, stage_batch)
        for k, x, denoised in zip(points, states, outputs, strict=True):
            registers[program.inputs + k] = denoised.to(dtype)
            if callback is not None:
                callback(Evaluation(k, program.nfe, stage, x, *numbers[k], denoised))
    first = program.nfe if readouts else len(rows) - 1
    results = [_combine(rows[r], support[r], registers) for r in range(first, len(rows))]
    return torch.stack(results) if readouts else results[0]


def _scalars(values: Tensor) -> Sequence[Any]:
    """Host numbers, or 0-dim tensors where gradients are asked for."""
    return values.unbind() if values.requires_grad else values.tolist()


def _combine(row: Any, support: list[bool], registers: list[Tensor | None]) -> Tensor:
    """Form one row: the sum of coefficient times register over its structural entries."""
    total: Tensor | None = None
    for i, used in enumerate(support):
        if used:
            value: Any = registers[i]
            if total is None:
                total = value * row[i]
            elif isinstance(row[i], Tensor):
                total = total + value * row[i]
            else:
                total = torch.add(total, value, alpha=row[i])
    return torch.zeros_like(registers[0]) if total is None else total  # pyright: ignore[reportArgumentType]


def _evaluate(denoiser: Denoise, states: list[Tensor], told: list[Any], cond: Any, limit: int | None) -> list[Tensor]:
    """Run one stage: its points in a row along the batch, split into calls of at most `limit`."""
    batch, points = states[0].shape[0], len(states)
    x = torch.cat(states) if points > 1 else states[0]
    alpha, sigma = (torch.cat([_full(states[0], level[i]) for level in told]) for i in (0, 1))
    tree = (x, alpha, sigma, repeat_cond(cond, batch, points)) if cond is not None else (x, alpha, sigma)
    if limit is None or batch * points <= limit:
        return list(denoiser(*tree).chunk(points))
    total = batch * points
    calls = [slice_batch(tree, total, slice(start, start + limit)) for start in range(0, total, limit)]
    return list(torch.cat([denoiser(*call) for call in calls]).chunk(points))


def _full(x: Tensor, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device=x.device, dtype=x.dtype).expand(x.shape[0])
    return x.new_full((x.shape[0],), value)


def slice_batch(tree: Any, total: int, rows: slice) -> Any:
    """Some samples of a pytree of tensors: rows of those whose first dimension is `total`, all others whole."""
    return pytree.tree_map(lambda leaf: leaf[rows] if _is_batched(leaf, total) else leaf, tree)


def _is_batched(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch


def repeat_cond(cond: Any, batch: int, times: int) -> Any:
    """Repeat every batched tensor of a condition for the points of a stage (point by point, not sample by sample).

    Raises:
        ValueError: a tensor with a dimension has not `batch` as its first.
    """

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            return leaf
        if leaf.shape[0] != batch:
            raise ValueError(f"cond holds a tensor of shape {tuple(leaf.shape)}; its first dimension must be {batch}")
        return leaf if times == 1 else leaf.repeat(times, *[1] * (leaf.ndim - 1))

    return pytree.tree_map(repeat, cond)
