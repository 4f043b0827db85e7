"""Objectives that start every step of a student from the reference, so that all steps run as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.families.bespoke import Bespoke
from solverdistill.objectives import Batch, Distance, Features, distance
from solverdistill.program import SolverProgram, sample
from solverdistill.settings import check_fields


def side_by_side(programs: Sequence[SolverProgram]) -> SolverProgram:
    """One program that plays several, each on inputs of its own: the k-th stages of all run as one batch.

    Inputs, evaluations and readouts are those of the programs in their order, so the readouts of the result are
    ``[*readouts of the first, *readouts of the second, ...]``.
    """
    inputs, nfe = (sum(getattr(program, name) for program in programs) for name in ("inputs", "nfe"))
    evaluations, readouts, stages = [], [], [[] for _ in range(max(program.depth for program in programs))]
    first_input, first = 0, 0
    for program in programs:
        table = torch.zeros(program.A.shape[0], inputs + nfe, dtype=program.A.dtype)
        columns = [*range(first_input, first_input + program.inputs)]
        columns += range(inputs + first, inputs + first + program.nfe)
        values = table.index_copy(1, torch.tensor(columns), torch.cat([program.A, program.B], dim=1))
        mask = table.bool().index_copy(1, torch.tensor(columns), program.mask)
        evaluations.append((values[: program.nfe], mask[: program.nfe], program.level[: program.nfe]))
        readouts.append((values[program.nfe :], mask[program.nfe :], program.level[program.nfe :]))
        for merged, stage in zip(stages, program.stages, strict=False):
            merged += [first + k for k in stage]
        first_input, first = first_input + program.inputs, first + program.nfe
    values, mask, level = (torch.cat(part) for part in zip(*evaluations, *readouts, strict=True))
    return SolverProgram(
        alpha=torch.cat([program.alpha for program in programs]),
        sigma=torch.cat([program.sigma for program in programs]),
        A=values[:, :inputs],
        B=values[:, inputs:],
        mask=mask,
        stages=tuple(map(tuple, stages)),
        level=level,
    )


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


@dataclass(frozen=True)
class RMSEBound:
    """The Bespoke loss: an upper bound of the root mean squared error of the end point, from errors of single steps.

    loss = mean over samples of sum_{i=1}^{n} M_i d_i,     M_i = prod_{j=i}^{n-1} L_j,  M_n = 1

    where d_i is the root mean square of x(t_i) - step_{i-1}(x(t_{i-1})) on the reference solution x, and L_j the
    Lipschitz constant of step j, given that of the velocity. It bounds the error where `lipschitz` does bound that of
    the velocity in the paper's time (of length 1); for a network 1 does not, and the M_i are weights.

    Reference states at learned times move with the times: their derivative is that of the reference's interpolant,
    which is the slope of the ODE at its points and to third order in between (the paper's x_aux, without evaluations).
    On edm, errors are those of x / (1 + sigma), in which the solver works.

    Args:
        lipschitz: L_tau, the Lipschitz constant that the velocity is taken to have.
    Reference: Shaul et al., "Bespoke Solvers for Generative Flow Models", ICLR 2024. arXiv 2310.19075
    """

    lipschitz: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lipschitz < 0:
            raise ValueError(f"lipschitz of the RMSE bound must not be negative, not {self.lipschitz}")

    def __call__(self, family: Family, params: Params, denoiser: Any, batch: Batch) -> Tensor:
        """The loss of a batch: a scalar, differentiable in the params."""
        if not isinstance(family, Bespoke):
            raise ValueError(f"the RMSE bound is known for bespoke_rk1 and bespoke_rk2, not for {family.name}")
        errors = self.step_errors(family, params, denoiser, batch)
        return (self.weights(family, params).to(errors)[:, None] * errors).sum(0).mean()

    def weights(self, family: Bespoke, params: Params) -> Tensor:
        """M_1 to M_n: how much an error after each step can grow until the end. Shape: (n,)."""
        growth = family.growth(family.transformation(params), self.lipschitz)
        return torch.cat([growth[1:].flip(0).cumprod(0).flip(0), growth.new_ones(1)])

    def step_errors(self, family: Bespoke, params: Params, denoiser: Any, batch: Batch) -> Tensor:
        """d_1 to d_n of every sample, from one network call per stage for all steps. Shape: (n, batch)."""
        if batch.reference is None:
            raise ValueError("the RMSE bound needs the whole reference trajectory in `batch.reference`")
        values = family.transformation(params)
        states = batch.reference.at(family.levels(values)).to(batch.noise.dtype)
        steps = side_by_side([family.step_program(i, params) for i in range(family.steps)])
        ends = sample(steps, denoiser, list(states[:-1]), batch.cond, readouts=True)
        difference = (states[1:] - ends).flatten(2)
        factors = family.factors(values)[1:, None].to(difference)
        return torch.linalg.vector_norm(difference, dim=2) / (factors * difference.shape[2] ** 0.5)
