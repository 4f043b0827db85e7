"""Normal equations of the end points of a student: from exact derivatives, or from random projections of them.

With r_n the student's end point minus the teacher's for sample n (D numbers) and J_n its derivative in the params::

    objective     mean_n rmse_n^power / power,   rmse_n = |r_n| / sqrt(D)
    reweighting   w_n = max(rmse_n, floor)^(power - 2)
    gradient      g = mean_n w_n J_n' r_n / D
    curvature     H = mean_n w_n J_n' J_n / D
    sketch of it  H = mean_n w_n (J_n' u_n) (J_n' u_n)' / D       u_n: random signs, E[u u'] = 1

The sketch needs u_n' J_n alone, a backward pass; g stays exact, so what is random is how far a step goes in which
direction and not where it leads to.

References: iterative re-weighting as in Holland and Welsch, "Robust regression using iteratively reweighted
least-squares", 1977; random signs: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solverdistill.denoisers.base import per_sample
from solverdistill.families.base import Family, Params
from solverdistill.fits.batches import take
from solverdistill.fits.gauss_newton.derivatives import Differentiator, coefficient_tangents
from solverdistill.fits.gauss_newton.sketches import RollOut
from solverdistill.fits.report import BACKWARD_COST, Meter
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.programs.program import Coefficients, SolverProgram
from solverdistill.references.batch import Batch
from solverdistill.support.memory import Parts
from solverdistill.support.processes import total

SMALLEST_DIAGONAL = 1e-10  # share of the largest one below which a param counts as this sensitive


class NormalEquations(NamedTuple):
    """H, shape (params, params), and g, shape (params,); means over the samples of all processes, float64."""

    H: Tensor
    g: Tensor

    @property
    def finite(self) -> bool:
        """Whether every number is."""
        return bool(torch.isfinite(self.H).all() & torch.isfinite(self.g).all())


@dataclass
class Equations:
    """Accumulates normal equations over samples, a part of the batch at a time.

    Args:
        denoiser: The teacher, possibly guided.
        batch_size: Samples that go through the network at once; fewer where there is no memory for so many.
        jacobian: "sketch": random projections, by backward passes; "exact": all derivatives, in forward mode.
        sketches: Projections of every sample.
        power: Exponent of the objective, 1 to 2.
        directions: Directional derivatives taken at once; they multiply the memory of a batch.
        meter: Where the work is counted.
    """

    denoiser: Any
    batch_size: int = 64
    jacobian: str = "sketch"
    sketches: int = 1
    power: float = 1.0
    directions: int = 8
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        self.differentiate = Differentiator(self.denoiser, self.directions, meter=self.meter)
        self.parts = Parts(self.batch_size, "derivatives")

    @property
    def derivatives(self) -> str:
        """How the network is differentiated."""
        return "backward" if self.jacobian == "sketch" else self.differentiate.mode

    def __call__(
        self, family: Family, params: Params, batch: Batch, signs: Tensor, floor: float, samples: int
    ) -> NormalEquations:
        """H and g at some params.

        Args:
            family: The student.
            params: Where to linearise.
            batch: This process's samples: noise, end points and condition.
            signs: Random signs of these samples. Shape: (sketches, batch, ...); not used by exact ones.
            floor: Smallest error that reweighting divides by.
            samples: Number of samples of all processes.
        """
        program, tangents = coefficient_tangents(family, params)
        acting = torch.stack([value.flatten(1).abs().amax(1) for value in tangents]).amax(0) > 0
        tangents, count = Coefficients(*(value[acting] for value in tangents)), int(acting.sum())
        add = self._sketched if self.jacobian == "sketch" else self._exact
        index = torch.arange(batch.noise.shape[0])

        def of_part(rows: slice) -> Tensor:
            return add(program, tangents, take(batch, index[rows]), signs[:, rows], floor)

        sums = sum(self.parts.run(len(index), of_part), torch.zeros(count + 1, count, dtype=torch.float64))
        sums = total(sums) / samples
        H = torch.zeros(len(acting), len(acting), dtype=torch.float64)
        g = torch.zeros(len(acting), dtype=torch.float64)
        H[acting.nonzero(), acting.nonzero().T], g[acting] = sums[:-1], sums[-1]
        return NormalEquations(H, g)

    def _sketched(
        self, program: SolverProgram, tangents: Coefficients, part: Batch, signs: Tensor, floor: float
    ) -> Tensor:
        """H over g of some samples. Shape: (params + 1, params)."""
        images = part.noise.shape[0] * program.nfe
        with self.meter.measure("forward", images):
            roll_out = RollOut(program, self.denoiser, part)
        weight, residual = self._weighted(roll_out.end, part.end, floor)
        with self.meter.measure("backward", BACKWARD_COST * (1 + len(signs)) * images):
            rows = roll_out.differentiate(weight * residual, tangents, last=len(signs) == 0)
            sums = torch.cat([torch.zeros(rows.shape[1], rows.shape[1]).double(), rows.sum(0, keepdim=True)])
            for i, sign in enumerate(signs):
                rows = roll_out.differentiate(weight.sqrt() * sign.to(weight), tangents, last=i == len(signs) - 1)
                sums[:-1] += rows.T @ rows / len(signs)
        return sums

    def _exact(
        self, program: SolverProgram, tangents: Coefficients, part: Batch, signs: Tensor, floor: float
    ) -> Tensor:
        """H over g of some samples. Shape: (params + 1, params)."""
        with self.meter.measure("forward", part.noise.shape[0] * program.nfe):
            end = sample(program, self.denoiser, part.noise, part.cond)
        weight, residual = self._weighted(end, part.end, floor)
        jacobian = self.differentiate(program, tangents, part).double()
        weighted = (jacobian * weight.double()).flatten(1)
        return torch.cat([weighted @ jacobian.flatten(1).T, (weighted @ residual.double().flatten())[None]]).cpu()

    def _weighted(self, end: Tensor, target: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        """w_n / D, shaped to multiply images, and the residuals."""
        error = rmse(end, target).clamp(min=max(floor, torch.finfo(end.dtype).tiny))
        return per_sample(error ** (self.power - 2), end) / end[0].numel(), end - target


def damped_step(equations: NormalEquations, damping: float) -> Tensor:
    """Solve (H + damping diag(H)) step = -g; params that never act do not move. Shape: (params,)."""
    diagonal = equations.H.diagonal()
    size = diagonal.clamp(min=SMALLEST_DIAGONAL * float(diagonal.max())).sqrt()
    size = torch.where(size > 0, size, torch.ones_like(size))
    scaled = equations.H / size[:, None] / size + damping * torch.eye(len(size), dtype=torch.float64)
    return -torch.linalg.solve(scaled, equations.g / size) / size


def moved(params: Params, step: Tensor) -> Params:
    """Params moved by a step of all their entries in a row."""
    parts = step.split([value.numel() for value in params.values()])
    return {name: value + part.view_as(value) for (name, value), part in zip(params.items(), parts, strict=True)}
