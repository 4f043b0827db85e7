"""Fits in closed form, without gradient descent: pure functions of a student, a teacher and reference data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params, State
from solverdistill.families.learned.dode import DistilledODE
from solverdistill.fits.batches import error_of
from solverdistill.fits.protocol import FitContext, FitPlan, Standing
from solverdistill.fits.report import FitReport, Meter, Point
from solverdistill.programs.tracing import Eager
from solverdistill.references.batch import Batch
from solverdistill.references.trajectory import Trajectory
from solverdistill.support.processes import count
from solverdistill.support.type_checks import check_fields, check_ranges


@dataclass(frozen=True)
class GreedyFit:
    """Settings of the closed-form fit of D-ODE solvers: in terms of training, one step on one batch of all samples.

    Args:
        samples: Samples of the training set that are used, at most.
    """

    samples: int = 1024
    needs_trajectories: ClassVar[bool] = True
    resumes: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, "fit.", "samples", least=1)

    def check(self, plan: FitPlan) -> None:
        """Refuse a student that is none of D-ODE's."""
        check_greedy(plan.student.family)

    def expected(self, plan: FitPlan) -> int:
        """One roll-out of the training samples in every process, and two errors."""
        samples = count() * min(self.samples, plan.train_samples)
        return samples * plan.student.family.nfe + 2 * plan.held_out

    def run(self, context: FitContext) -> Standing:
        """Fit all lambdas anew."""
        before, train = context.standing, context.trajectories(self.samples)
        held_out = context.samples("validation")
        params, report = fit_greedily(before.student.family, context.plan.denoiser, train, held_out)
        return before.after(report, params)


class _LeastSquares:
    """Takes the place of the corrections of a D-ODE solver: finds each lambda where the solver meets it."""

    def __init__(self, targets: Tensor) -> None:
        self.targets, self.lambdas = targets, torch.zeros(len(targets), dtype=torch.float64)

    def __call__(self, k: int, y: State, direction: State) -> State:
        square = (direction * direction).sum()
        # Nothing to extrapolate, as at pure noise, where the denoised image is the mean of the data.
        if bool(square > 0):
            self.lambdas[k] = (direction * (self.targets[k] - y)).sum() / square
        return y + direction * self.lambdas[k]


@torch.no_grad()
def fit_dode(
    family: DistilledODE, denoiser: Any, noise: Tensor, targets: Trajectory | Tensor, cond: Any = None
) -> Params:
    """Fit the lambdas of a D-ODE solver, one after the other, on the student's own states.

    lambda_k = <q_k, R_k> / <q_k, q_k> over all samples and pixels, where q_k is the direction of the correction and R_k
    the teacher's state minus the student's uncorrected one, both started from the same noise. One roll-out in float64
    (float32 on mps), `family.nfe` evaluations.

    Teacher states are read at exactly the levels of the student's states. The published code takes them from a finer
    grid at other levels; pass such states as a tensor to repeat it.

    Args:
        family: A `dode_*` family.
        denoiser: The teacher, possibly guided.
        noise: Unit-normal noise. Shape: (batch, ...).
        targets: Reference solutions from the same noise; or their states at `family.corrected_levels()`, scaled as
            these, shape (lambdas, batch, ...).
        cond: Condition, or None.
    Returns:
        The params; a lambda that has no effect is 0.
    Raises:
        ValueError: the family has no lambdas, or the number of target states is not theirs.
    Reference: Kim et al., "Distilling ODE Solvers of Diffusion Models into Smaller Steps", CVPR 2024. arXiv 2309.16421
    """
    if not isinstance(family, DistilledODE):
        raise ValueError(f"fit_dode fits the lambdas of dode families; {family.name} has none")
    levels, dtype = family.corrected_levels(), torch.float32 if noise.device.type == "mps" else torch.float64
    states = targets.at(levels) if isinstance(targets, Trajectory) else targets
    if len(states) != len(levels):
        raise ValueError(f"{family.name} has {len(levels)} lambdas and needs as many target states, not {len(states)}")
    path = family.path
    scales = [float(level.hypot() / path.straight(path.clock_of(level)).hypot()) for level in levels]
    straight = [state.to(noise.device, dtype) / scale for state, scale in zip(states, scales, strict=True)]
    fit = _LeastSquares(torch.stack(straight))
    for _ in family.roll_out(noise.to(dtype), Eager(denoiser, cond), fit):
        pass
    return {"lambdas": fit.lambdas.view(family.shape)}


def check_greedy(family: Family) -> None:
    """Refuse what fit=greedy cannot do, before anything is computed.

    Raises:
        ValueError: the family has no lambdas.
    """
    if not isinstance(family, DistilledODE):
        raise ValueError(f"fit=greedy finds the lambdas of dode solvers; {family.name} has none, take fit=gradient")


@torch.no_grad()
def fit_greedily(family: Family, denoiser: Any, batch: Batch, held_out: Batch) -> tuple[Params, FitReport]:
    """Fit a D-ODE solver to a batch with whole reference trajectories, and measure it on held-out samples.

    Args:
        family: A `dode_*` family.
        denoiser: The teacher, possibly guided, on the device of the batches.
        batch: Samples to fit.
        held_out: Held-out samples with end points.
    Raises:
        ValueError: the family has no lambdas, or the batch no trajectories.
    """
    if not isinstance(family, DistilledODE):
        raise ValueError(f"fit_greedily fits the lambdas of dode families; {family.name} has none")
    if batch.reference is None:
        raise ValueError("fit_greedily needs the whole reference trajectory in `batch.reference`")
    meter = Meter(batch.noise.device)

    def point(params: Params) -> Point:
        of = denoiser, held_out, len(held_out.noise), meter
        return meter.point(error_of(lambda: family.program(params), *of))

    start = family.init(0)
    history = [point(start)]
    with meter.measure("forward", batch.noise.shape[0] * family.nfe):
        params = fit_dode(family, denoiser, batch.noise, batch.reference, batch.cond)
    fitted = point(params)
    better = fitted.rmse < history[0].rmse
    history.append(fitted if better else history[0])
    note = "" if better else "the lambdas found are worse than none on held-out samples"
    return (params if better else start), FitReport.of("greedy", history, meter, "all lambdas found", note)
