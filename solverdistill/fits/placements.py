"""Placements of parallel points: many random ones, a few Gauss-Newton steps each, and the best go on.

A `parallel` student begins as the best sequential solver of its depth: the race and Gauss-Newton on `corrected` at one
evaluation per stage, unless it was given a table. Where the points beside these evaluations belong is a question of
many minima. With weights of zero the points do not act, and neither do their rows, so that the start is a saddle from
which Gauss-Newton goes to a poor one of them. Each placement therefore draws

    spread  uniform in SPREAD           every entry of the points, and what reads them:  PUSH times a normal number
    told    TOLD times a normal number, added to the half_log_snr that the network hears of every point

and goes on in two rounds: half of the placements after half of the steps, the finalists after all of them. Which are
best is asked on all held-out samples, for there are many to choose from; which steps are kept, on `samples` of them.

The best of the finalists is the student if it is better than the sequential solver; else that one is, which costs less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.families.learned.parallel import Parallel
from solverdistill.families.learned.table import Table
from solverdistill.families.student import Student
from solverdistill.fits.batches import mean_error, take
from solverdistill.fits.gauss_newton.fit import GaussNewtonFit, fit_gauss_newton
from solverdistill.fits.protocol import Fit, FitContext, FitPlan, Progress, Standing
from solverdistill.fits.race.fit import RaceFit
from solverdistill.fits.report import FitReport, Meter, Point
from solverdistill.programs.program import SolverProgram
from solverdistill.references.batch import Batch
from solverdistill.support.processes import count
from solverdistill.support.type_checks import LARGEST_SEED, check_fields, check_ranges

SPREAD = (-0.2, 1.2)
PUSH, TOLD = 0.1, 0.3
FINAL_PATIENCE = 8


@dataclass(frozen=True)
class PlacementFit:
    """Settings of the search for placements.

    Args:
        placements: Random placements that begin.
        iterations: Gauss-Newton steps of a placement before the finalists are chosen; half of the placements take half.
        finalists: Placements that go on.
        final_iterations: Gauss-Newton steps of a finalist, at most.
        samples: Training samples of a step, and held-out samples that decide whether it is kept.
        batch_size: Samples that go through the network at once.
        seed: Seed of the placements; the run's own takes its place.
        points: Evaluations of each sequential call, for a sequential student, beside whose own points are placed; null
            for a student that has points.
    """

    placements: int = 12
    iterations: int = 8
    finalists: int = 2
    final_iterations: int = 60
    samples: int = 128
    batch_size: int = 64
    seed: int = 0
    points: int | None = None
    needs_trajectories: ClassVar[bool] = True
    resumes: ClassVar[bool] = False
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        names = ("placements", "iterations", "finalists", "final_iterations", "samples", "batch_size")
        check_ranges(self, "fit.placements.", *names, least=1)
        check_ranges(self, "fit.placements.", "points", least=2)
        check_ranges(self, "fit.placements.", "seed", least=0, most=LARGEST_SEED)

    def check(self, plan: FitPlan) -> None:
        """Refuse a student that has no points, and where none are asked for, or more than its own."""
        family = plan.student.family
        if isinstance(family, Parallel):
            if self.points is not None:
                raise ValueError(f"fit.placements.points={self.points} is for a sequential student; set solver.points")
        elif self.points is None:
            raise ValueError(
                f"fit=placements finds where the points of parallel belong; {family.name} has none, take "
                "fit=[race,gauss_newton], or set fit.placements.points for points beside its evaluations"
            )
        elif family.depth != family.nfe:
            raise ValueError(f"fit.placements.points: {family.name} has evaluations side by side already")

    def expected(self, plan: FitPlan) -> int:
        """The sequential solver's fits and all rounds, with a placement that was given beside the random ones."""
        family, most = plan.student.family, 0
        if isinstance(family, Parallel):
            before = sequential_plan(plan, family, self.batch_size)
            most = before.held_out + sum(fit.expected(before) for fit in before.fits.values())
        else:
            plan = replace(plan, student=Student.of(self.beside(family.program(family.init(0)), family)))
        few = replace(plan, held_out_samples=min(self.samples, plan.held_out_samples), rivals=())
        for placed, iterations in self.rounds(self.placements + 1):
            if iterations:
                most += placed * (GaussNewtonFit(iterations, self.samples).expected(few) + plan.held_out)
        return most

    def beside(self, program: SolverProgram, family: Family) -> Parallel:
        """A student with points beside the evaluations of a sequential one."""
        table = Table.of(program.detach(), family.path, family.grid[0])
        return Parallel(grid=table.grid, path=table.path, table=table.table, points=self.points or 2)

    def rounds(self, placed: int) -> list[tuple[int, int]]:
        """Placements of every round, and their steps."""
        half = max(1, self.iterations // 2)
        later = min(placed, max(self.finalists, placed // 2))
        last = min(later, self.finalists)
        return [(placed, half), (later, self.iterations - half), (last, self.final_iterations)]

    def run(self, context: FitContext) -> Standing:
        """Fit the sequential solver, search placements beside it, and keep what is better."""
        family, given, plan = context.standing.student.family, context.standing.params, context.plan
        begun = list[Placement]()
        if not isinstance(family, Parallel):
            before, given = context.standing, family.init(plan.seed) if given is None else given
            family = self.beside(family.program(given), family)
        elif given is None:
            before = sequential(context, family, self.batch_size)
        else:
            before, begun = context.standing, [Placement(family, given)]
        train, held_out = context.samples("train"), context.samples("validation")
        search = _Search(plan.denoiser, train, held_out, replace(self, seed=plan.seed), context.progress)
        return search.run(before, family, begun)


def sequential(context: FitContext, family: Parallel, batch_size: int) -> Standing:
    """The sequential solver of a parallel student, fitted; a table that it was given is left as it is.

    Args:
        context: Where the student stands.
        family: The student.
        batch_size: Samples that go through the network at once.
    """
    standing = context.standing
    plan = sequential_plan(replace(context.plan, student=standing.student), family, batch_size)
    standing = replace(standing, student=plan.student)
    for fit in plan.fits.values():
        standing = fit.run(FitContext(plan, standing, context.data.for_student(standing.student.family)))
    return standing


def sequential_plan(plan: FitPlan, family: Parallel, batch_size: int) -> FitPlan:
    """The fits of the sequential solver of a parallel student; none for a table that it was given."""
    if family.table is not None:
        return replace(plan, student=Student.of(replace(family, points=1)), fits={}, rivals=())
    options = {"denoise_to_zero": family.denoise_to_zero}
    if family.base is not None:
        options |= {"base": family.base, "order": family.order}
    grid = family.grid if plan.student.rule is None else plan.student.rule
    own = Student.build("corrected", family.depth, grid, family.path, options)
    fits: dict[str, Fit] = {"race": RaceFit(batch_size=batch_size)}
    return replace(plan, student=own, rivals=(), fits={**fits, "gauss_newton": GaussNewtonFit(batch_size=batch_size)})


class Placement(NamedTuple):
    """Where points were placed, what became of them, and the mean RMSE of that on all held-out samples."""

    family: Parallel
    params: Params
    rmse: float = float("inf")


class _Search:
    """One run of the search.

    Args:
        denoiser: The teacher, possibly guided.
        train: Samples to fit.
        held_out: Samples to choose by.
        settings: Its sizes.
        progress: Told after every step.
    """

    def __init__(
        self, denoiser: Any, train: Batch, held_out: Batch, settings: PlacementFit, progress: Progress | None
    ) -> None:
        self.denoiser, self.train, self.held_out, self.settings = denoiser, train, held_out, settings
        self.few = take(held_out, torch.arange(min(settings.samples, len(held_out.noise))))
        self.meter, self.progress = Meter(train.noise.device), progress
        self.done, self.steps = 0, 0  # Gauss-Newton steps, and those of all rounds at most
        self.generator = torch.Generator().manual_seed(settings.seed)

    def run(self, before: Standing, family: Parallel, begun: list[Placement]) -> Standing:
        """The standing with the best placement, or as it was.

        Args:
            before: The sequential solver, or what the student was begun at.
            family: The student.
            begun: Placements that take part beside random ones.
        """
        settings, first = self.settings, before.student.family
        params = first.init(settings.seed) if before.params is None else before.params
        error = self.error(first.program(params)) if before.rmse is None else before.rmse
        before = replace(before, params=params, rmse=error)
        start = begun[0].family.source if begun else first.program(params).detach()
        field = [*begun, *(self.draw(family, start, first.grid[0]) for _ in range(settings.placements))]
        placed = len(field)
        rounds = settings.rounds(placed)
        self.steps = sum(number * steps for number, steps in rounds)
        (_, half), (later, rest), (finalists, last) = rounds
        field = self.advance(field, half, half)[:later]
        field = self.advance(field, rest, settings.iterations)[:finalists]
        field = self.advance(field, last, FINAL_PATIENCE)
        best = field[0]
        history = [Point(error, 0, 0.0), Point(min(error, best.rmse), self.meter.evaluations, self.meter.seconds)]
        note = f"best of {placed} placements {best.rmse:.4f}, beside {first.name} with nfe {first.nfe}: {error:.4f}"
        report = FitReport.of("placements", history, self.meter, "all rounds done", note)
        return before.after(report, best.params, Student.of(best.family))

    def draw(self, family: Parallel, start: SolverProgram, top: float) -> Placement:
        """A random placement beside the evaluations of a sequential table that begins at a noise level."""
        low, high = SPREAD
        spread = low + (high - low) * float(torch.rand((), generator=self.generator))
        table = Table.of(start, family.path, top)
        placed = Parallel(grid=table.grid, path=table.path, table=table.table, points=family.points, spread=spread)
        params, mask = placed.init(self.settings.seed), placed.corrections.mask[:, 1:]
        point = torch.arange(placed.nfe) % placed.points > 0
        acting = mask & (point | torch.cat([point, torch.zeros(1, dtype=torch.bool)])[:, None])
        params["correction_denoised"] = PUSH * self.normal(mask.shape) * acting
        params["told"] = TOLD * self.normal(point.shape) * point
        return Placement(placed, params)

    def normal(self, shape: torch.Size) -> Tensor:
        """Normal numbers. float64."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def advance(self, field: list[Placement], iterations: int, patience: int) -> list[Placement]:
        """Placements after some Gauss-Newton steps, the best first."""
        if iterations == 0:
            return field
        given, size = self.settings, self.settings.batch_size
        settings = GaussNewtonFit(iterations, given.samples, size, patience=patience, seed=given.seed)
        moved = list[Placement]()
        for placement in field:
            params, report = fit_gauss_newton(
                placement.family, self.denoiser, self.train, self.few, settings, placement.params
            )
            for kind, cost in report.spent.items():
                self.meter.add(kind, cost.evaluations / count(), cost.seconds)
            moved.append(Placement(placement.family, params, self.error(placement.family.program(params))))
            self.done += iterations
            if self.progress is not None:
                self.progress(self.done, self.steps, min(one.rmse for one in moved))
        return sorted(moved, key=lambda one: one.rmse)

    def error(self, program: SolverProgram) -> float:
        """Mean RMSE on all held-out samples."""
        return mean_error(program.detach(), self.denoiser, self.held_out, self.settings.batch_size, self.meter)
