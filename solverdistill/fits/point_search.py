"""Point search: where the parallel points of an EPD step belong, found by trying many of them.

Step after step, on the student's own states: with y the state of a step from clock u to u', Y the teacher's state at u'
(the end point after the last step) and s_m the slope at ``tau_m = u'^r_m u^(1 - r_m)``, evaluated for a dozen ratios
r_m::

    minimise  mean |Y - y - (u' - u) a sum_k w_k s_k|^2      over the points, the weights w and the direction scale a

All slopes being known, every choice of points is a linear problem with K unknowns, so all choices (66 of two points)
are compared. The weights sum to 1 and are kept from 0, a is kept from the ends of its range: a softmax or a sigmoid
that is nearly flat has no derivative that could bring it back. The step then goes on with the best choice.

No derivatives of the network and one roll-out of 13 evaluations per step. Not of the EPD paper, which draws points at
random; docs/fits.md has what it brings.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Family, History, Params
from solverdistill.families.learned.epd import EPD, Points
from solverdistill.families.ode import Slope
from solverdistill.fits.batches import error_of, take_solved
from solverdistill.fits.protocol import FitContext, FitPlan, Standing
from solverdistill.fits.report import FitReport, Meter, Point
from solverdistill.noise.levels import float64
from solverdistill.programs.tracing import Eager
from solverdistill.references.batch import Batch
from solverdistill.support.processes import count, dealt, share, total
from solverdistill.support.type_checks import check_fields, check_ranges

RATIOS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.27, 0.35, 0.45, 0.55, 0.67, 0.8, 0.92)  # r = 0 would be the slope g again
SMALLEST_WEIGHT = 0.05
REACH = 0.9  # share of the range of the direction scale
log = logging.getLogger(__name__)
RIDGE = 1e-9  # share of the mean diagonal: slopes at neighbouring points are nearly the same


@dataclass(frozen=True)
class PointSearchFit:
    """Settings of `fit_points`.

    Args:
        samples: Samples of the training set that points are searched on, at most; at least one per process.
        batch_size: Samples that go through the network at once.
    """

    samples: int = 64
    batch_size: int = 64
    needs_trajectories: ClassVar[bool] = True
    resumes: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, "fit.", "samples", "batch_size", least=1)

    def check(self, plan: FitPlan) -> None:
        """Refuse a student without points, unless other fits can work on it."""
        if len(plan.fits) == 1:
            check_points(plan.student.family)

    def expected(self, plan: FitPlan) -> int:
        """The search and two errors; nothing where there are no points."""
        family = plan.student.family
        return self.of_search(family, plan.train_samples) + 2 * plan.held_out if searchable(family) else 0

    def of_search(self, family: Family, train_samples: int) -> int:
        """Evaluations that the search alone takes, at most."""
        return dealt(min(max(self.samples, count()), train_samples)) * (len(RATIOS) + 1) * family.steps

    def run(self, context: FitContext) -> Standing:
        """Search the points of the standing, where there are any."""
        before, denoiser = context.standing, context.plan.denoiser
        family = before.student.family
        if not searchable(family):
            log.info("point_search: %s has no points to search; left out", family.name)
            return before
        train, held_out = context.trajectories(self.samples), context.samples("validation")
        params, report = fit_points(family, denoiser, train, held_out, self, before.params)
        return before.after(report, params)


class Choice(NamedTuple):
    """Points of a step as positions in `RATIOS`, shape (points,), their weights, shape (points,), and the scale a."""

    points: Tensor
    weights: Tensor
    scale: Tensor


def searchable(family: Family) -> bool:
    """Whether points can be searched for a student."""
    return isinstance(family, EPD) and family.points <= len(RATIOS)


def check_points(family: Family) -> EPD:
    """Refuse a student without points, before anything is computed.

    Raises:
        ValueError: it has none, or more than there are to choose from.
    """
    if not isinstance(family, EPD):
        raise ValueError(
            f"fit=point_search finds the points of epd and epd_ipndm; {family.name} has none, take fit=gauss_newton"
        )
    if not searchable(family):
        raise ValueError(
            f"fit=point_search chooses among {len(RATIOS)} points, too few for solver.points={family.points}; "
            "take fit=gauss_newton"
        )
    return family


@torch.no_grad()
def fit_points(
    family: Family,
    denoiser: Any,
    train: Batch,
    held_out: Batch,
    settings: PointSearchFit | None = None,
    start: Params | None = None,
) -> tuple[Params, FitReport]:
    """Search the points of a student; what comes back is never worse on held-out samples than the start.

    Args:
        family: The student, `epd` or `epd_ipndm`.
        denoiser: The teacher, possibly guided, on the device of the batches.
        train: Samples with whole reference trajectories; the same in all processes, as `held_out`.
        held_out: Samples with end points.
        settings: Numbers of samples.
        start: Where to start; None for the family's initial params. Learned times stay as they are in it.
    Returns:
        The better params, and the report.
    Raises:
        ValueError: the family has no points, or the batch no trajectories.
    """
    settings, meter = settings or PointSearchFit(), Meter(train.noise.device)
    start = family.init(0) if start is None else start
    found = search_points(family, denoiser, train, start, settings, meter)
    of = denoiser, held_out, settings.batch_size, meter
    errors = [error_of(lambda params=params: family.program(params).detach(), *of) for params in (start, found)]
    history = [Point(errors[0], 0, 0.0), meter.point(min(errors))]
    better = errors[1] < errors[0]
    note = "" if better else "the points found are worse than the start on held-out samples"
    return (found if better else start), FitReport.of("point_search", history, meter, "all steps done", note)


@torch.no_grad()
def search_points(
    family: Family, denoiser: Any, train: Batch, start: Params, settings: PointSearchFit, meter: Meter
) -> Params:
    """Points, weights and direction scales of every step; see the module for the equations.

    Args:
        family: The student, `epd` or `epd_ipndm`.
        denoiser: The teacher, possibly guided.
        train: Samples with whole reference trajectories, the same in all processes, which share the work.
        start: Gives the learned times; the rest of it is not read.
        settings: Numbers of samples.
        meter: Counts the evaluations.
    Returns:
        All params: time scales of 1, the times of the start, the rest as found.
    Raises:
        ValueError: the family has no points, or the batch no trajectories.
    """
    family = check_points(family)
    if train.reference is None:
        raise ValueError(
            "fit=point_search needs the whole reference trajectories in `batch.reference`; make dense targets"
        )
    params = {name: torch.zeros_like(value) for name, value in family.init(0).items()}
    if family.learn_times:
        params["raw_dt"] = start["raw_dt"].to("cpu", torch.float64)
    values = family.prepare(params)
    positions = share(torch.arange(min(max(settings.samples, count()), train.noise.shape[0])))
    walks = [_Walk(family, denoiser, take_solved(train, i), values) for i in positions.split(settings.batch_size)]
    for i in range(family.steps):
        with meter.measure("forward", len(positions) * (len(RATIOS) + (not (family.afs and i == 0)))):
            sums = total(torch.stack([walk.look(i) for walk in walks]).sum(0))
            choice = best_choice(sums[:-1], sums[-1], family.points, _reach(family, i))
            for walk in walks:
                walk.go(i, choice)
        params["r_params"][i] = torch.logit(float64(RATIOS)[choice.points])
        params["weight_s"][i] = choice.weights.log()
        if family.scale_dir:
            share_of_range = (choice.scale - 1 + family.scale_dir) / (2 * family.scale_dir)
            params["scale_dir_params"][i] = 2 * torch.logit(share_of_range)
    return params


def _reach(family: EPD, i: int) -> float:
    """How far the direction scale of step i may go from 1."""
    return 0.0 if family.fcn and i == family.steps - 1 else REACH * family.scale_dir


class _Walk:
    """Some samples on their way through the steps.

    Args:
        family: The student.
        denoiser: The teacher.
        batch: The samples, with whole reference trajectories.
        values: The student's prepared params; their timeline is the only part that is read.
    """

    def __init__(self, family: EPD, denoiser: Any, batch: Batch, values: Points) -> None:
        self.family, self.batch, self.timeline = family, batch, values.timeline
        self.slope = Slope(family.path, Eager(denoiser, batch.cond))
        noise = batch.noise.to(torch.promote_types(batch.noise.dtype, torch.float32))
        self.y = noise * (family.initial_scale(values) / values.timeline.scale[0])
        self.history: History = ()
        self.slopes = self.y[None][:0]

    def look(self, i: int) -> Tensor:
        """Slopes at all ratios of step i, and the products of these with each other and with the wanted direction.

        Returns:
            The products of the slopes over those with the wanted direction. Shape: (ratios + 1, ratios), float64.
        """
        u, u_next = self.timeline.clock[i], self.timeline.clock[i + 1]
        g = self.family.first_slope(i, self.y, u, self.slope)
        direction, self.history = self.family.predictor(g, self.history)
        clocks = [u_next**r * u ** (1 - r) for r in RATIOS]
        self.slopes = torch.stack([self.slope(self.y + direction * (tau - u), tau) for tau in clocks])
        wanted = (self._target(i + 1) - self.y) / (u_next - u)
        rows = torch.cat([self.slopes, wanted[None]]).flatten(1)
        wide = rows if rows.device.type == "mps" else rows.double()
        return (wide @ wide[:-1].T).cpu().double()

    def go(self, i: int, choice: Choice) -> None:
        """Advance by step i."""
        width = self.timeline.clock[i + 1] - self.timeline.clock[i]
        for k, weight in zip(choice.points.tolist(), choice.weights * choice.scale, strict=True):
            self.y = self.y + self.slopes[k] * (weight * width)

    def _target(self, i: int) -> Tensor:
        """The teacher's state at grid point i in straight coordinates: after the last step, the end point."""
        assert self.batch.reference is not None
        ends = i == self.family.steps and not self.family.denoise_to_zero
        state = self.batch.end if ends else self.batch.reference.at([self.timeline.level(i)])[0]
        return state.to(self.y) / self.timeline.scale[i]


def best_choice(products: Tensor, wanted: Tensor, points: int, reach: float) -> Choice:
    """The points, weights and direction scale that come nearest to a wanted direction.

    Args:
        products: Inner products of the slopes. Shape: (ratios, ratios).
        wanted: Inner products of the slopes with the wanted direction. Shape: (ratios,).
        points: K, how many are chosen.
        reach: How far the direction scale may go from 1.
    Returns:
        The choice; some even weights where the products are not finite.
    """
    chosen = torch.tensor(list(combinations(range(len(wanted)), points)))
    b = wanted[chosen]
    G = products[chosen[:, :, None], chosen[:, None, :]]
    ridge = RIDGE * products.diagonal().mean() + torch.finfo(torch.float64).tiny
    solved = torch.linalg.solve(
        G + ridge * torch.eye(points, dtype=torch.float64), torch.stack([b, torch.ones_like(b)], dim=-1)
    )
    free, along = solved.unbind(-1)  # without a constraint, and where the sum of the weights leads
    sums = free.sum(-1, keepdim=True)
    kept = sums.clamp(1 - reach, 1 + reach)
    weights = (free + along * (kept - sums) / along.sum(-1, keepdim=True)) / kept
    above = (weights - SMALLEST_WEIGHT).clamp(min=0)
    weights = SMALLEST_WEIGHT + (1 - points * SMALLEST_WEIGHT) * above / above.sum(-1, keepdim=True)
    weights = weights.nan_to_num(nan=1 / points)
    linear, square = (weights * b).sum(-1), torch.einsum("cj,cjk,ck->c", weights, G, weights)
    scale = (linear / square.clamp(min=torch.finfo(torch.float64).tiny)).clamp(1 - reach, 1 + reach)
    best = int((scale**2 * square - 2 * scale * linear).nan_to_num(nan=float("inf")).argmin())
    return Choice(chosen[best], weights[best], scale[best].nan_to_num(nan=1.0))
