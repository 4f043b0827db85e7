"""Levenberg-Marquardt on the end points: second-order fits of a few dozen params, without back-propagation.

With r_n the student's end point minus the teacher's for sample n (D numbers) and J_n its derivative in the params::

    objective     mean_n rmse_n,   rmse_n = |r_n| / sqrt(D)
    reweighting   w_n = 1 / max(rmse_n, floor)                        so that  g = sum_n w_n J_n' r_n  is its gradient
    step          (H + damping diag(H)) step = -g,   H = sum_n w_n J_n' J_n

J comes in forward mode, see `solverdistill.derivatives`.

References: Levenberg, Quarterly of Applied Mathematics 2, 1944; Marquardt, SIAM Journal 11, 1963, Eq. 33; iterative
re-weighting as in Holland and Welsch, "Robust regression using iteratively reweighted least-squares", 1977.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.derivatives import Differentiator, coefficient_tangents
from solverdistill.families.base import Family, Params
from solverdistill.objectives import Batch
from solverdistill.program import Coefficients, SolverProgram, sample
from solverdistill.settings import check_fields
from solverdistill.trajectories import rmse

SMALLEST_DIAGONAL = 1e-10  # share of the largest one below which a param counts as this sensitive
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GaussNewtonFit:
    """Settings of `fit_gauss_newton`.

    Args:
        iterations: Jacobians, at most.
        samples: Training samples per Jacobian, drawn anew for each; null for all.
        batch_size: Samples that go through the network at once.
        directions: Directional derivatives taken at once; they multiply the memory of a batch.
        damping: Damping of the first step, a share of the diagonal.
        damping_factor: Factor between the dampings that are tried.
        tries: Dampings tried per Jacobian, at most.
        floor: Smallest error that reweighting divides by, as a share of the mean error.
        tolerance: Share by which an iteration must lower the held-out error to count as progress.
        patience: Iterations without progress after which the fit stops.
        seed: Seed of the initial params and of the samples drawn.
    """

    iterations: int = 15
    samples: int | None = 128
    batch_size: int = 64
    directions: int = 8
    damping: float = 1e-2
    damping_factor: float = 5.0
    tries: int = 5
    floor: float = 0.1
    tolerance: float = 3e-3
    patience: int = 3
    seed: int = 0
    interval: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("iterations", "samples", "batch_size", "directions", "tries", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"fit.{name} must be at least 1, not {value}")
        for name, above in (("damping", 0.0), ("floor", 0.0), ("damping_factor", 1.0)):
            if not getattr(self, name) > above:
                raise ValueError(f"fit.{name} must be above {above:g}, not {getattr(self, name)}")


class Point(NamedTuple):
    """Where a fit stood after an iteration: held-out error against what was spent until then."""

    rmse: float
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class FitReport:
    """What a fit did and what it cost.

    Args:
        history: The start, and the state after each iteration; errors are mean RMSE of the held-out end points.
        evaluations: Images that the network evaluated, in forward equivalents: a directional derivative of an image
            counts as 1.5.
        derivatives: How the network was differentiated: "vmap", "loop" or "differences".
        stopped: Why the fit ended.
    """

    history: tuple[Point, ...]
    evaluations: int
    seconds: float
    derivatives: str
    stopped: str

    @property
    def rmse(self) -> float:
        """Held-out error of the params that the fit returns, the smallest that it found."""
        return self.history[-1].rmse


class NormalEquations(NamedTuple):
    """H, shape (params, params), and g, shape (params,); sums over samples, float64."""

    H: Tensor
    g: Tensor


@torch.no_grad()
def normal_equations(
    family: Family,
    params: Params,
    differentiate: Differentiator,
    batch: Batch,
    batch_size: int = 64,
    floor: float = 0.1,
) -> NormalEquations:
    """Accumulate H and g of the module's step over the samples of a batch, each part sums that can be reduced.

    Args:
        family: The student.
        params: Where to linearise.
        differentiate: Differentiates samples.
        batch: Noise, end points and condition.
        batch_size: Samples at once.
        floor: Smallest error that reweighting divides by, as a share of the mean error.
    """
    program, tangents = coefficient_tangents(family, params)
    acting = torch.stack([value.flatten(1).abs().amax(1) for value in tangents]).amax(0) > 0
    tangents = Coefficients(*(value[acting] for value in tangents))
    ends = play_batches(program, differentiate.denoiser, batch, batch_size)
    differentiate.evaluations += len(ends) * program.nfe
    errors = rmse(ends, batch.end).double()
    weights = 1 / errors.clamp(min=max(floor * float(errors.mean()), torch.finfo(torch.float64).tiny))
    count = int(acting.sum())
    H, g = (torch.zeros(*shape, dtype=torch.float64) for shape in ((count, count), (count,)))
    for index in torch.arange(len(ends)).split(batch_size):
        part = take(batch, index)
        jacobian = differentiate(program, tangents, part).double().flatten(2)
        residual, weight = (ends[index] - part.end).double().flatten(1), weights[index, None] / jacobian.shape[2]
        weighted = (jacobian * weight).flatten(1)
        H += (weighted @ jacobian.flatten(1).T).cpu()
        g += (weighted @ residual.flatten()).cpu()
    result = NormalEquations(
        torch.zeros(len(acting), len(acting), dtype=torch.float64), torch.zeros(len(acting)).double()
    )
    result.g[acting] = g
    result.H[acting.nonzero(), acting.nonzero().T] = H
    return result


def damped_step(equations: NormalEquations, damping: float) -> Tensor:
    """Solve (H + damping diag(H)) step = -g; params that never act do not move. Shape: (params,)."""
    diagonal = equations.H.diagonal()
    size = diagonal.clamp(min=SMALLEST_DIAGONAL * float(diagonal.max())).sqrt()
    size = torch.where(size > 0, size, torch.ones_like(size))
    scaled = equations.H / size[:, None] / size + damping * torch.eye(len(size), dtype=torch.float64)
    return -torch.linalg.solve(scaled, equations.g / size) / size


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """End points, noise and conditions of a batch on the network's device."""
    cond = None if batch.cond is None else pytree.tree_map(lambda leaf: leaf.to(device), batch.cond)
    return Batch(batch.noise.to(device), batch.targets[:0].to(device), batch.end.to(device), cond)


def take(batch: Batch, index: Tensor) -> Batch:
    """Noise, end points and condition of some samples."""
    cond = None if batch.cond is None else pytree.tree_map(lambda leaf: leaf[index], batch.cond)
    return Batch(batch.noise[index], batch.targets[:, :0], batch.end[index], cond)


def play_batches(program: SolverProgram, denoiser: Any, batch: Batch, batch_size: int) -> Tensor:
    """Samples of a program from the noise of a batch, `batch_size` at a time. Shape: (batch, ...)."""
    parts = (take(batch, index) for index in torch.arange(batch.noise.shape[0]).split(batch_size))
    return torch.cat([sample(program, denoiser, part.noise, part.cond) for part in parts])


def moved(params: Params, step: Tensor) -> Params:
    """Params moved by a step of all their entries in a row."""
    parts = step.split([value.numel() for value in params.values()])
    return {name: value + part.view_as(value) for (name, value), part in zip(params.items(), parts, strict=True)}


@torch.no_grad()
def fit_gauss_newton(
    family: Family,
    denoiser: Any,
    train: Batch,
    held_out: Batch,
    settings: GaussNewtonFit | None = None,
    start: Params | None = None,
) -> tuple[Params, FitReport]:
    """Fit a student's params to reference end points by Levenberg-Marquardt; see the module for the equations.

    A step is kept only if it lowers the mean RMSE on the held-out samples, so the last params are the best, and a step
    that diverges, or that the family refuses, is undone. From one damping on, larger ones are tried until a step is
    kept, or smaller ones while they are better still; the next iteration begins with the damping that was best.
    Deterministic for a seed.

    Args:
        family: The student.
        denoiser: The teacher, possibly guided, on the device of the batches.
        train: Samples to fit, with their end points.
        held_out: Samples that decide which steps are kept.
        settings: How the fit runs.
        start: Params to start from; those of the seed by default.
    Returns:
        The params, float64 on the host, and the report.
    Raises:
        ValueError: the family has no params that change its table.
    """
    settings = settings or GaussNewtonFit()
    return _Fit(family, denoiser, train, held_out, settings).run(start)


class _Fit:
    """One run of `fit_gauss_newton`."""

    def __init__(self, family: Family, denoiser: Any, train: Batch, held_out: Batch, settings: GaussNewtonFit) -> None:
        self.family, self.train, self.held_out, self.settings = family, train, held_out, settings
        self.differentiate = Differentiator(denoiser, settings.directions)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.damping, self.began = settings.damping, time.perf_counter()

    def run(self, start: Params | None) -> tuple[Params, FitReport]:
        settings, idle, stopped = self.settings, 0, "all iterations done"
        initial = self.family.init(settings.seed) if start is None else start
        params = {name: value.detach().to("cpu", torch.float64) for name, value in initial.items()}
        history = [self._point(self.error(params))]
        for _ in range(settings.iterations):
            equations = normal_equations(
                self.family, params, self.differentiate, self._draw(), settings.batch_size, settings.floor
            )
            if not bool(torch.isfinite(equations.H).all() & torch.isfinite(equations.g).all()):
                stopped = "the derivatives are not finite"
                break
            params, error = self._advance(params, history[-1].rmse, equations)
            idle = idle + 1 if error > (1 - settings.tolerance) * history[-1].rmse else 0
            exhausted = error == history[-1].rmse and self._takes_all
            history.append(self._point(error))
            log.info("gauss_newton: held-out RMSE %.4g after %d evaluations", error, history[-1].evaluations)
            if exhausted or idle >= settings.patience:
                stopped = "no step lowers the held-out error" if exhausted else "plateau"
                break
        last = self._point(history[-1].rmse)
        return params, FitReport(tuple(history), last.evaluations, last.seconds, self.differentiate.mode, stopped)

    def error(self, params: Params) -> float:
        """Mean RMSE on the held-out samples; infinite where the family refuses the params."""
        try:
            program = self.family.program(params)
        except ValueError:
            return float("inf")
        ends = play_batches(program, self.differentiate.denoiser, self.held_out, self.settings.batch_size)
        self.differentiate.evaluations += len(ends) * program.nfe
        error = float(rmse(ends, self.held_out.end).mean())
        return error if error < float("inf") else float("inf")

    def _advance(self, params: Params, error: float, equations: NormalEquations) -> tuple[Params, float]:
        """Walk along the damping: up until the error falls, or down while it falls further."""
        best, damping, factor = (params, error), self.damping, 0.0
        for _ in range(self.settings.tries):
            candidate = moved(params, damped_step(equations, damping))
            trial = self.error(candidate)
            better = trial < best[1]
            if better:
                best, self.damping = (candidate, trial), damping
            if factor == 0.0:
                factor = 1 / self.settings.damping_factor if better else self.settings.damping_factor
            elif better != (factor < 1):
                break
            damping *= factor
        return best

    @property
    def _takes_all(self) -> bool:
        return self.settings.samples is None or self.settings.samples >= self.train.noise.shape[0]

    def _draw(self) -> Batch:
        if self._takes_all:
            return self.train
        order = torch.randperm(self.train.noise.shape[0], generator=self.generator)
        return take(self.train, order[: self.settings.samples])

    def _point(self, error: float) -> Point:
        return Point(error, self.differentiate.evaluations, time.perf_counter() - self.began)
