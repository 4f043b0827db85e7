"""Derivatives of single samples in a student's params from ordinary backward passes.

All samples share one table, so back-propagating to its numbers gives their sum over the samples. The terms of that sum
lie open all the same: with a_k the derivative of v . sample in the state that evaluation k was made at, its derivative
in a number of the table is an inner product per sample::

    d(v . sample) / dA_ki = <a_k, input_i>      d(v . sample) / dB_kj = <a_k, denoised_j>

and that in a told level is the derivative in the level of that sample. Times the derivatives of the table's numbers in
the params this is v' J, one row of params per sample, for the price of one backward pass through the roll-out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverdistill.denoisers.base import call
from solverdistill.programs.playing import sample
from solverdistill.programs.program import Coefficients, SolverProgram
from solverdistill.references.batch import Batch


class Recorded(NamedTuple):
    """One network call of a roll-out: a zero added to its states, the levels told, and what came out."""

    shift: Tensor
    alpha: Tensor
    sigma: Tensor
    denoised: Tensor


class _Recorder:
    """Calls a denoiser and keeps hold of what goes in and out, each told level a leaf of its own."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.calls = denoiser, []

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        shift = torch.zeros_like(x, requires_grad=True)
        alpha, sigma = (level.detach().clone().requires_grad_() for level in (alpha, sigma))
        denoised = call(self.denoiser, x + shift, alpha, sigma, cond)
        self.calls.append(Recorded(shift, alpha, sigma, denoised))
        return denoised


class RollOut:
    """One roll-out of a batch that single samples can be differentiated in.

    Args:
        program: A table of numbers.
        denoiser: The teacher, possibly guided.
        batch: Noise and condition.
    Attributes:
        end: The samples. Shape: (batch, ...).
    """

    def __init__(self, program: SolverProgram, denoiser: Any, batch: Batch) -> None:
        recorder = _Recorder(denoiser)
        with torch.enable_grad():
            self._end = sample(program, recorder, batch.noise, batch.cond)
        self.program, self.end, self._calls = program, self._end.detach(), recorder.calls
        outputs: dict[int, Tensor] = {}
        for stage, made in zip(program.stages, self._calls, strict=True):
            outputs.update(zip(stage, made.denoised.detach().chunk(len(stage)), strict=True))
        registers = [batch.noise.to(self.end.dtype), *(outputs[k] for k in range(program.nfe))]
        self._registers = torch.stack(registers).flatten(2)

    def differentiate(self, vectors: Tensor, tangents: Coefficients, last: bool = True) -> Tensor:
        """v' J of every sample. `tangents`: derivatives of the table in the params, params first.

        Args:
            vectors: v of every sample. Shape: (batch, ...).
            tangents: As `derivatives.coefficient_tangents` gives them.
            last: Free the roll-out; there is no further call.
        Returns:
            Float64 on the host. Shape: (batch, params).
        """
        leaves = [leaf for made in self._calls for leaf in (made.shift, made.alpha, made.sigma)]
        found = torch.autograd.grad(self._end, leaves, vectors, retain_graph=not last)
        rows = self._rows(vectors, found)
        row, of = (torch.cat([part.flatten(1) for part in parts], dim=1) for parts in (rows, tangents))
        return row @ of.T

    def _rows(self, vectors: Tensor, found: tuple[Tensor, ...]) -> Coefficients:
        """Derivatives in the numbers of the table, samples first, float64 on the host."""
        program, batch = self.program, vectors.shape[0]
        told = torch.zeros(2, batch, program.nfe, dtype=torch.float64)
        table = torch.zeros(batch, *program.mask.shape, dtype=torch.float64)
        for k, (state, *levels) in self._by_evaluation(found):
            table[:, k] = self._against_registers(state)
            for i, level in enumerate(levels):
                told[i, :, k] = level.double().cpu()
        table[:, -1] = self._against_registers(vectors)
        A, B = (table * program.mask).split([program.inputs, program.nfe], dim=2)
        return Coefficients(told[0], told[1], A, B)

    def _by_evaluation(self, found: tuple[Tensor, ...]) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Derivatives in (state, alpha, sigma) of every evaluation."""
        for number, stage in enumerate(self.program.stages):
            parts = [value.chunk(len(stage)) for value in found[3 * number : 3 * number + 3]]
            yield from zip(stage, zip(*parts, strict=True), strict=True)

    def _against_registers(self, state: Tensor) -> Tensor:
        return torch.einsum("jnd,nd->nj", self._registers, state.flatten(1)).double().cpu()


def random_signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent +1 and -1, as bytes on the host."""
    return (2 * torch.randint(2, shape, generator=generator) - 1).to(torch.int8)
