"""The rows of a student's table as linear problems: what is free in them, and the images that they combine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import call
from solverdistill.families.base import Family, Params
from solverdistill.fits.report import Meter
from solverdistill.noise.levels import Level
from solverdistill.programs.program import SolverProgram
from solverdistill.references.batch import Batch


class Row(NamedTuple):
    """A row of a table, the params that first act in it, and its derivative in these.

    coefficients: of the registers that the row can know, the noise and the denoised images before it, shape (known,);
    number: index of the row in its table; entries: indices into the linear params; jacobian: shape (entries, known).
    """

    number: int
    coefficients: Tensor
    entries: Tensor
    jacobian: Tensor


class LinearTable:
    """A student's table as a function of the params that its rows are affine in.

    Args:
        family: The student.
        params: All of its params; the others stay as they are.
    Raises:
        ValueError: the family has no such params.
    """

    def __init__(self, family: Family, params: Params) -> None:
        self.family, self.names = family, family.linear_params
        if not self.names:
            raise ValueError(
                f"least squares needs params in which rows are affine, and {family.name} has none; take another fit"
            )
        self.params = {name: value.detach().to("cpu", torch.float64).clone() for name, value in params.items()}
        self._trace()
        rows = [*range(self.nfe), self.last]
        taken = torch.zeros(sum(self.params[name].numel() for name in self.names), dtype=torch.bool)
        self.entries: dict[int, Tensor] = {}
        for r in rows:
            acting = (self._jacobian(r) != 0).any(1) & ~taken
            self.entries[r] = acting.nonzero().flatten()
            taken |= acting

    def _trace(self) -> None:
        self._leaves = [self.params[name].clone().requires_grad_() for name in self.names]
        with torch.enable_grad():
            traced = self.family.program({**self.params, **dict(zip(self.names, self._leaves, strict=True))})
            self._rows = torch.cat([traced.A, traced.B], dim=1)
        self.program: SolverProgram = traced.detach()

    @torch.enable_grad()
    def _jacobian(self, r: int) -> Tensor:
        """Derivative of row r in all linear params. Shape: (params, 1 + nfe)."""
        result = torch.zeros(sum(leaf.numel() for leaf in self._leaves), self._rows.shape[1], dtype=torch.float64)
        if self._rows.requires_grad:
            for k in self.program.mask[r].nonzero().flatten().tolist():
                parts = torch.autograd.grad(self._rows[r, k], self._leaves, retain_graph=True, allow_unused=True)
                pairs = zip(parts, self._leaves, strict=True)
                result[:, k] = torch.cat([(torch.zeros_like(v) if g is None else g).flatten() for g, v in pairs])
        return result

    def row(self, r: int) -> Row:
        """Row r at the present params."""
        known = 1 + min(r, self.nfe)
        return Row(r, self.coefficients(r)[:known], self.entries[r], self._jacobian(r)[self.entries[r], :known])

    def move(self, entries: Tensor, step: Tensor) -> None:
        """Add a step to some linear params."""
        flat = torch.cat([self.params[name].flatten() for name in self.names])
        flat[entries] += step
        parts = flat.split([self.params[name].numel() for name in self.names])
        self.params |= {name: part.view_as(self.params[name]) for name, part in zip(self.names, parts, strict=True)}
        self._trace()

    @property
    def nfe(self) -> int:
        """Number of evaluations, whose rows are the first."""
        return self.program.nfe

    @property
    def last(self) -> int:
        """Index of the row of the sample."""
        return self.program.A.shape[0] - 1

    def coefficients(self, r: int) -> Tensor:
        """Row r. Shape: (1 + nfe,)."""
        return torch.cat([self.program.A[r], self.program.B[r]])

    def level(self, r: int) -> Level:
        """Level of the state that row r forms."""
        return Level(*self.program.level[r])


class Registers:
    """The noise of all samples and their denoised images so far: what rows combine.

    They take nfe + 1 times the memory of the noise, on its device.

    Args:
        denoiser: The teacher, possibly guided.
        batch: Gives noise and condition.
        batch_size: Samples that go through the network, or into a sum, at once.
        meter: Counts what the network evaluates.
    """

    def __init__(self, denoiser: Any, batch: Batch, batch_size: int, meter: Meter) -> None:
        self.denoiser, self.cond, self.batch_size, self.meter = denoiser, batch.cond, batch_size, meter
        self.images = [batch.noise.to(torch.promote_types(batch.noise.dtype, torch.float32))]

    def parts(self) -> Iterator[Tensor]:
        """Positions of the samples, `batch_size` at a time."""
        yield from torch.arange(self.images[0].shape[0]).split(self.batch_size)

    def combine(self, coefficients: Tensor, index: Tensor) -> Tensor:
        """One combination of the registers, for some samples. coefficients: shape (1 + nfe,)."""
        total = torch.zeros_like(self.images[0][index])
        for value, image in zip(coefficients.tolist(), self.images, strict=False):
            if value:
                total = total.add(image[index], alpha=value)
        return total

    def evaluate(self, program: SolverProgram, k: int, states: Callable[[Tensor], Tensor]) -> None:
        """Append the denoised images of evaluation k of a program at the states of samples, given by position."""
        alpha, sigma = float(program.alpha[k]), float(program.sigma[k])
        outputs = []
        for index in self.parts():
            x = states(index)
            cond = None if self.cond is None else pytree.tree_map(lambda leaf, i=index: leaf[i], self.cond)
            levels = x.new_full((len(index),), alpha), x.new_full((len(index),), sigma)
            with self.meter.measure("forward", len(index)):
                outputs.append(call(self.denoiser, x, *levels, cond).to(x.dtype))
        self.images.append(torch.cat(outputs))

    def play(self, program: SolverProgram, k: int) -> None:
        """Append the denoised images of evaluation k of a program, at its own states."""
        row = torch.cat([program.A[k], program.B[k]])
        self.evaluate(program, k, lambda index: self.combine(row, index))
