"""The Bespoke loss: a bound of the end point's error from errors of single steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.families.learned.bespoke import Bespoke
from solverdistill.programs.merging import side_by_side
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.support.type_checks import check_fields, check_ranges


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
        check_ranges(self, "objective.", "lipschitz", least=0)

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
