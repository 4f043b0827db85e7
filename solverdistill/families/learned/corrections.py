"""Learned corrections to the numbers of a table: what the families that correct whole solvers share.

Each entry of an evaluation row, and of the row of the sample, that can be non-zero is moved by a param times a constant
of its row, and the network may be told another level::

    A_k   = A_k(base)  + scale_k correction_inputs_k
    B_kj  = B_kj(base) + scale'_k correction_denoised_kj
    told:   half_log_snr_k = half_log_snr_k(base) + told_k          the network sees the same x

so that zero corrections are the base. scale and scale' are about the size of what is corrected: the noise and the
signal that the state of row k consists of. Unlike raw rows, which are badly scaled for a first-order optimiser, a step
of a given size means much the same in every row.

A told level also has a size, hypot(alpha, sigma), by which the network divides what it sees; it is kept, since the size
of a row says the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, Family, History, Params, State
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram

ENTRIES = ("correction_inputs", "correction_denoised")


@dataclass(frozen=True, eq=False)
class Corrections:
    """Which entries of a table move, and by how much for a param of 1.

    Args:
        rows: Indices of the rows that are corrected: every evaluation and the sample. Shape: (nfe + 1,).
        mask: Entries of these rows that a correction acts on. Shape: (nfe + 1, 1 + nfe).
        scales: Sizes of the corrections of noise and of denoised images in every row. Shapes: (nfe + 1, 1).
    """

    rows: Tensor
    mask: Tensor
    scales: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, template: SolverProgram, smallest: float = 0.0) -> Corrections:
        """Corrections to every structural entry of a table of one input.

        Args:
            template: Gives the structure, and the levels of its rows the sizes.
            smallest: Least size, as a share of hypot(alpha, sigma).
        """
        with torch.inference_mode(False):
            rows = torch.tensor([*range(template.nfe), template.A.shape[0] - 1])
            level = template.level[rows]
            sizes = torch.maximum(level, smallest * torch.hypot(*level.unbind(1))[:, None])
            return cls(rows, template.mask[rows], (sizes[:, 1:], sizes[:, :1]))

    @property
    def nfe(self) -> int:
        """Number of evaluations."""
        return len(self.rows) - 1

    def zeros(self, told: bool = True) -> Params:
        """Params that correct nothing, with or without those of told levels."""
        shapes = {ENTRIES[0]: (self.nfe + 1, 1), ENTRIES[1]: (self.nfe + 1, self.nfe)}
        if told:
            shapes |= {"told": (self.nfe,)}
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def apply(self, table: SolverProgram, params: Params) -> SolverProgram:
        """A table with the structure of the template, corrected; differentiable in the table and the params."""
        parts = torch.split(self.mask, [1, self.nfe], dim=1)
        A, B = (
            entries.index_add(0, self.rows, scale * params[name] * part)
            for entries, scale, name, part in zip((table.A, table.B), self.scales, ENTRIES, parts, strict=True)
        )
        alpha, sigma = table.alpha, table.sigma
        if "told" in params:
            size, alpha = torch.hypot(alpha, sigma), alpha * torch.exp(params["told"])
            size = size / torch.hypot(alpha, sigma)
            alpha, sigma = alpha * size, sigma * size
        return replace(table, A=A, B=B, alpha=alpha, sigma=sigma)


class TableFamily(Family):
    """A family that makes its table as a whole, so that there are no steps.

    Objectives that start a step from given states cannot use it.
    """

    @property
    def linear_params(self) -> tuple[str, ...]:
        return ENTRIES

    def solve(self, denoiser: Any, noise: Tensor, params: Params | None = None, cond: Any = None) -> Iterator[Tensor]:
        """Play the table, one evaluation per network call, and yield the state after every step."""
        yield from sample(self.program(params), denoiser, noise, cond, readouts=True, stage_batch=noise.shape[0])

    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Any) -> NoReturn:
        """Refuse: corrections belong to the table as a whole."""
        raise ValueError(
            f"{self.name} corrects the table of a whole solver and has no steps of its own; take an end-point or "
            "trajectory objective, which plays program(params)"
        )
