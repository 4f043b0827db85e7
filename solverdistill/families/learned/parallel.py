"""Parallel solvers: a sequential solver with further points beside each of its evaluations.

With K points a stage is the evaluation of the sequential solver and K - 1 more that run beside it as one batch, so that
K times the evaluations take as many sequential network calls. A point evaluates at a level of its own on a state of its
own; every causal entry of the table is free, see `table`. Zero params are the sequential solver, whose results no point
enters.

A point begins on the way from its stage to the next, at a share of the difference in half_log_snr, with the state that
one step of DDIM leads to there::

    x'  =  (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) denoised of the stage before

The stage's own denoised image is not known to the points beside it, which is what parallel costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from solverdistill.families.learned.table import Table, every_causal_entry
from solverdistill.families.step_search import MOST_EVALUATIONS
from solverdistill.programs.program import SolverProgram
from solverdistill.support.type_checks import check_range

WIDEST = 4.0  # difference of half_log_snr between stages that points are placed in, at most


@dataclass(frozen=True, kw_only=True)
class Parallel(Table):
    """A sequential solver with points - 1 further evaluations beside each of its own, all of whose table is free.

    Params as of `Table`, in the order of the evaluations: stage by stage the sequential solver's own, then its points.

    Args:
        points: Evaluations per stage, the sequential solver's own included.
        spread: Where the points of a stage begin, from 0, its own level, to 1, that of the next stage; the last point
            lies here, the others are spaced evenly before it.
        base: Sequential solver that it starts as on the grid, if no table is given.
        table: Sequential program that it starts as.
    Raises:
        ValueError: as of `Table`, or the table has stages of several evaluations.
    """

    points: int = 2
    spread: float = 0.5
    name: ClassVar[str] = "parallel"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(f"points of {self.name}", self.points, least=1, most=MOST_EVALUATIONS)
        if self.source.depth != self.source.nfe:
            raise ValueError(
                f"{self.name} puts points beside the evaluations of a sequential solver; the one given has "
                f"{self.source.nfe} evaluations in {self.source.depth} stages"
            )

    @cached_property
    def start(self) -> SolverProgram:
        with torch.inference_mode(False):
            return with_points(self.source, self.points, self.spread)


def with_points(program: SolverProgram, points: int, spread: float) -> SolverProgram:
    """A sequential program of one input with idle points beside each evaluation, which may use all that is known there.

    Args:
        program: The sequential program.
        points: Evaluations per stage, the program's own included.
        spread: See `Parallel`.
    """
    nfe, snr = program.nfe, _places(program)
    total, own = nfe * points, torch.arange(nfe) * points
    wide = torch.zeros(program.A.shape[0], total, dtype=torch.float64).index_copy(1, own, program.B)
    used = wide.bool().index_copy(1, own, program.mask[:, 1:])
    alpha, sigma = _level(snr[:-1, None] + snr.diff()[:, None] * _shares(points, spread))
    size, ratio = torch.hypot(program.alpha, program.sigma)[:, None], sigma / sigma[:, :1]
    A, B = (ratio[..., None] * entries[:nfe, None] for entries in (program.A, wide))  # 1 times a stage's own row
    B[torch.arange(1, nfe), :, own[:-1]] += ((alpha - ratio * alpha[:, :1]) * size)[1:]
    level = torch.stack([alpha, sigma], -1)
    told, level[:, 0] = level * size[..., None], program.level[:nfe]
    told[:, 0] = torch.stack([program.alpha, program.sigma], -1)
    mask = torch.cat([program.mask[:, :1], used], 1)[nfe:]
    idle = torch.cat([torch.ones(total, 1, dtype=torch.bool), B.view(total, total) != 0], 1)
    return every_causal_entry(
        SolverProgram(
            *told.view(total, 2).unbind(1),
            A=torch.cat([A.view(total, 1), program.A[nfe:]]),
            B=torch.cat([B.view(total, total), wide[nfe:]]),
            mask=torch.cat([idle, mask]),
            stages=tuple(tuple(range(k * points, (k + 1) * points)) for k in range(nfe)),
            level=torch.cat([level.view(total, 2), program.level[nfe:]]),
        )
    )


def _shares(points: int, spread: float) -> Tensor:
    """Where the points of a stage lie between its level, 0, and the next one's, 1; its own evaluation first."""
    return spread * torch.arange(points, dtype=torch.float64) / max(1, points - 1)


def _places(program: SolverProgram) -> Tensor:
    """half_log_snr of the evaluations and of the sample, drawn in where they are infinite. Shape: (nfe + 1,)."""
    end = program.level[-1]
    snr = torch.log(torch.cat([program.alpha / program.sigma, (end[0] / end[1])[None]]))
    snr[0] = snr[0].clamp(min=float(snr[1].clamp(max=0.0)) - WIDEST)
    for k in range(1, len(snr)):
        snr[k] = snr[k].clamp(min=float(snr[k - 1]) - WIDEST, max=float(snr[k - 1]) + WIDEST)
    return snr


def _level(half_log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The level of unit size with a half_log_snr."""
    return torch.sigmoid(2 * half_log_snr).sqrt(), torch.sigmoid(-2 * half_log_snr).sqrt()
