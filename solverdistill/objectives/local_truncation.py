"""Objectives that start every step of a student from the reference, so that all steps run as one batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.objectives.distances import Distance, Features, distance
from solverdistill.programs.merging import side_by_side
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.support.type_checks import check_fields


@dataclass(frozen=True)
class LocalTruncation:
    """Teacher forcing: every step starts from the reference state and is compared with the next one.

    loss = mean over samples of sum_i distance(step_i(x_i), x_{i+1}), x_i the reference at grid point i. All steps run
    as one batch, so the roll-out is neither played nor differentiated. For students without history; AMED-Solver and
    D-ODE's relatives are trained this way.

    Args:
        distance: As of `objectives.Trajectory`.
        decode: As of `objectives.Trajectory`.
    """

    distance: str = "mse"
    decode: Features | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        _ = self.measure

    @cached_property
    def measure(self) -> Distance:
        """The distance itself."""
        return distance(self.distance, self.decode)

    def __call__(self, family: Family, params: Params, denoiser: Any, batch: Batch) -> Tensor:
        """The loss of a batch: a scalar, differentiable in the params."""
        programs = [family.step_program(i, params) for i in range(family.steps)]
        if any(program.inputs > 1 or len(program.readouts) > 1 for program in programs):
            raise ValueError(f"teacher forcing needs a student without history, and {family.name} has one")
        targets = batch.targets_at(family.prepared_levels(params)[1:])[: family.steps]
        start = batch.noise * family.start_scale(params).to(batch.noise)
        states = [start, *targets[:-1]]
        ends = sample(side_by_side(programs), denoiser, states, batch.cond, readouts=True)
        return torch.stack([self.measure(end, target) for end, target in zip(ends, targets, strict=True)]).sum(0).mean()
