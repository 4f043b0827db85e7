"""Race of starts: where a fit should begin, found by a few dozen end points each before anything is trained.

A student's error depends on its grid, on where the grid begins, and before training on the solver that it starts as, by
factors; a fit that begins at the best one needs fewer iterations and ends lower (docs/benchmarks/fits.md). Everything
that a family can start as (`Family.starts`) races on every grid of `grid_rules`, on the grid that it is configured
with, and on those that dynamic programming finds for Euler jumps along the reference (`fits.grid_search.gits`, no
network calls). The best go on from lower noise levels too: at the highest ones a denoised image is hardly more than the
mean of all images, and a solver of few evaluations ends nearer to the teacher's images if it takes its noise for a
state further down.

Successive halving on common noise: all start on a few samples, the best go on with more, and the winner runs against
the configured start on all.

What a fit repairs is a poor solver, not a poor grid, so the error at the start ranks the grids badly. Where rows of a
student are linear in its params (`Family.linear_params`), entrants are therefore compared after `fits.row_fits` has
fitted them to as many training samples; which solver they started as then hardly matters, and one start is enough.
Where a student has parallel points (`epd`), the finalists are those that `fits.point_search` makes of the best.
Reference: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from solverdistill.families.base import Family, Params
from solverdistill.families.student import Student
from solverdistill.fits.batches import error_of, take, take_solved
from solverdistill.fits.least_squares.row_fits import RowSettings, fit_rows
from solverdistill.fits.point_search import PointSearchFit, search_points, searchable
from solverdistill.fits.protocol import Finalist, FitContext, FitPlan, Progress, Standing
from solverdistill.fits.race.entrants import GITS_WEIGHTS, Entrant, entrants, from_lower, grid_rules
from solverdistill.fits.report import FitReport, Meter, Point
from solverdistill.references.batch import Batch
from solverdistill.support.processes import count, dealt, share
from solverdistill.support.type_checks import check_fields, check_ranges

SHIFTS = (1.0, 2.0, 3.0)  # of log(alpha / sigma) at the start, tried on the best grids
FINER = (-0.5, 0.5)  # tried on the best of these
FACTOR = 4  # samples of the finalists, of those of the first rounds; and of the last two, of those of the finalists
TRAJECTORIES = 64  # training samples that grids are searched on, and rows and points fitted to
SAME = 1e-5  # relative difference of errors up to which two tables are the same one
RIDGE = 1e-6  # of least squares on a few samples


@dataclass(frozen=True)
class RaceFit:
    """Settings of the race.

    Args:
        first: Samples of the first rounds, in which all take part, and then the best from lower noise levels; the
            finalists get four times as many, the best two of them sixteen times. The winner runs against the configured
            start on all held-out samples.
        survivors: Starts, on different grids, that go on from lower noise levels; finalists.
        starts: Let the family start as every solver that it can, not as the configured one alone; where least squares
            compares the starts, the configured one stands for all.
        gits: Take part with searched grids too.
        lower_starts: Let the best begin at lower noise levels too.
        least_squares: Compare what least squares of rows, or a point search, makes of the starts, where one of them
            can.
        batch_size: Samples that go through the network at once.
    """

    first: int = 4
    survivors: int = 4
    starts: bool = True
    gits: bool = True
    lower_starts: bool = True
    least_squares: bool = True
    batch_size: int = 64
    needs_trajectories: ClassVar[bool] = True
    resumes: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False
    weighs_families: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, "fit.race.", "first", "survivors", "batch_size", least=1)

    def check(self, plan: FitPlan) -> None:
        """Refuse to come after another fit."""
        if next(iter(plan.fits.values())) is not self:
            raise ValueError(f"{plan.chosen}: the race finds where to start, so it has to come first")

    def expected(self, plan: FitPlan) -> int:
        """All rounds of every family with every start on every grid, and each of the best from every lower level."""
        return sum(self._expected(plan, student.family) for student in (plan.student, *plan.rivals))

    def _expected(self, plan: FitPlan, family: Family) -> int:
        """The rounds of one family."""
        grid = family.grid
        linear = self.least_squares and bool(family.linear_params)
        starts = len(family.starts()) if self.starts and not linear else 1
        rules = len(grid_rules(family.path, grid[0], grid[-1])) + (len(GITS_WEIGHTS) if self.gits else 0)
        begun, finalists = 2 + starts * rules, self.survivors
        if self.lower_starts:
            begun, finalists = begun + self.survivors * len(SHIFTS), finalists + len(FINER)
        train, more = min(TRAJECTORIES, plan.train_samples), FACTOR * self.first

        def of(samples: int, fitted: bool = False) -> int:
            fit = dealt(min(max(samples, count()), train)) if fitted else 0
            return (dealt(min(samples, plan.held_out_samples)) + fit) * family.nfe

        second = of(more, linear)
        if self.least_squares and not linear and searchable(family):
            second += PointSearchFit(max(1, more // 2)).of_search(family, train)
        return begun * of(self.first, linear) + finalists * second + 2 * of(FACTOR * more) + 2 * plan.held_out

    def run(self, context: FitContext) -> Standing:
        """Find the student, and the params, to start from; of several families the best start of each."""
        plan, before, train = context.plan, context.standing, context.trajectories(TRAJECTORIES)
        held_out, meter = context.samples("validation"), Meter(context.data.device)
        ran = list[tuple[_Race, Student, Params, FitReport]]()
        with torch.no_grad():
            for student in (before.student, *plan.rivals):
                race = _Race(student, plan.denoiser, held_out, train, self, plan.seed, context.progress, meter)
                race.rounds, race.races = len(ran) * race.all_rounds, 1 + len(plan.rivals)
                ran.append((race, *race.run(before.params if not ran else None)))
        (race, winner, params, report), *others = sorted(ran, key=lambda one: one[-1].rmse)
        goes_on = before.params is not None and winner is before.student  # what was given won
        after = before.after(_joined(ran, meter), params, winner)
        rivals = tuple(Finalist(student, start) for _, student, start, _ in others)
        return replace(after, finalists=() if goes_on else tuple(race.others), rivals=rivals)


class Placed(NamedTuple):
    """An entrant, what a fit on a few samples made of it, and the mean RMSE of that in a round."""

    entrant: Entrant
    fitted: Entrant
    rmse: float


@torch.no_grad()
def run_race(
    student: Student,
    denoiser: Any,
    held_out: Batch,
    train: Batch | None = None,
    settings: RaceFit | None = None,
    seed: int = 0,
    params: Params | None = None,
    progress: Progress | None = None,
) -> tuple[Student, Params, FitReport]:
    """Find the start with the smallest mean RMSE of the end points; of equal ones the first, the configured one.

    Args:
        student: As configured.
        denoiser: The teacher, possibly guided, on the device of the samples.
        held_out: Samples to race on; the same in all processes, which share the work.
        train: Some training samples with their trajectories, for searched grids, least squares and point search; None
            leaves these out.
        settings: Sizes of the rounds.
        seed: Seed of the initial params.
        params: Params that the student has already: one entrant more, and the one that the winner has to beat.
        progress: Called with (round, rounds, smallest error in it).
    Returns:
        The student, the params of its start, and the report: the errors of the configured start and of the winner.
    """
    meter = Meter(held_out.noise.device)
    return _Race(student, denoiser, held_out, train, settings or RaceFit(), seed, progress, meter).run(params)


class _Race:
    """One run of `run_race`."""

    def __init__(
        self,
        student: Student,
        denoiser: Any,
        held_out: Batch,
        train: Batch | None,
        settings: RaceFit,
        seed: int,
        progress: Progress | None,
        meter: Meter,
    ) -> None:
        self.student, self.denoiser, self.held_out, self.train = student, denoiser, held_out, train
        self.settings, self.seed, self.meter = settings, seed, meter
        fits = train is not None and settings.least_squares
        self.linear = fits and bool(student.family.linear_params)
        self.points = fits and not self.linear and searchable(student.family)
        self.progress, self.rounds, self.races, self.others = progress, 0, 1, list[Finalist]()

    def run(self, params: Params | None = None) -> tuple[Student, Params, FitReport]:
        """All rounds; see `run_race` for what comes back."""
        settings, top = self.settings, self.student.family.grid[0]
        reference = self.train.reference if self.train is not None and settings.gits else None
        starts = settings.starts and not self.linear
        field = list(entrants(self.student, reference, starts, self.seed, params))
        configured, begun = field[0], len(field)
        few, more = settings.first, FACTOR * settings.first
        placed = self.told(self.place(field, few))
        if settings.lower_starts:
            best = [one.entrant for one in _best_of_grids(placed)[: settings.survivors]]
            lower = [other for one in best for other in from_lower(one, SHIFTS, top, self.seed)]
            placed, begun = self.told(_sorted([*placed, *self.place(lower, few)])), begun + len(lower)
        finalists = [one.entrant for one in _best_of_grids(placed)[: settings.survivors]]
        if settings.lower_starts:
            finer = list(from_lower(finalists[0], FINER, top, self.seed))
            finalists, begun = [*finalists, *finer], begun + len(finer)
        second = self.told(self.place(finalists, more, points=True))
        last = self.told(self.replay([one.fitted for one in second[:2]], FACTOR * more))
        ends = [last[0].fitted] if last[0].entrant is configured else [configured, last[0].fitted]
        final = self.told(self.replay(ends, len(self.held_out.noise)))
        start = next(one.rmse for one in final if one.fitted is configured)
        winner = final[0].fitted
        others = (one.fitted for one in _best_of_grids(second) if one.fitted is not winner)
        self.others = [Finalist(one.student, one.params) for one in others]
        ranks, on = (last, FACTOR * more) if winner is last[0].fitted else (final, len(self.held_out.noise))
        history = [Point(start, 0, 0.0), self.meter.point(final[0].rmse)]
        note = _note(ranks, min(on, len(self.held_out.noise)), begun - 1)
        report = FitReport.of("race", history, self.meter, "all rounds done", note)
        return winner.student, winner.params, report

    def told(self, placed: list[Placed]) -> list[Placed]:
        """Say that a round is done, and the smallest error in it."""
        self.rounds += 1
        if self.progress is not None:
            self.progress(self.rounds, self.races * self.all_rounds, placed[0].rmse)
        return placed

    @property
    def all_rounds(self) -> int:
        """Rounds of one race."""
        return 4 + self.settings.lower_starts

    def place(self, field: Iterable[Entrant], samples: int, points: bool = False) -> list[Placed]:
        """Entrants by their errors on some held-out samples, after a fit on as many training samples.

        Args:
            field: They begin at their own params.
            samples: Held-out samples, at most.
            points: Search points where a student has them.
        """
        placed = list[Placed]()
        for entrant in field:
            fitted = self.fit(entrant, samples, points)
            placed += [one._replace(entrant=entrant) for one in self.replay([fitted], samples)]
        return _sorted(placed)

    def replay(self, field: Iterable[Entrant], samples: int) -> list[Placed]:
        """Entrants by their errors as they are."""
        batch, placed = take(self.held_out, torch.arange(min(samples, len(self.held_out.noise)))), list[Placed]()
        for entrant in field:
            of = self.denoiser, batch, self.settings.batch_size, self.meter
            error = error_of(lambda one=entrant: one.program, *of)
            placed.append(Placed(entrant, entrant, error))
        return _sorted(placed)

    def fit(self, entrant: Entrant, samples: int, points: bool) -> Entrant:
        """An entrant after a fit to a few samples, at least one of each process; a search of points needs half."""
        family, batch_size = entrant.student.family, self.settings.batch_size
        if self.points and points and self.train is not None:
            search = PointSearchFit(max(1, samples // 2), batch_size)
            params = search_points(family, self.denoiser, self.train, entrant.params, search, self.meter)
            return replace(entrant, params=params, label=f"{entrant.label} + point search")
        if not self.linear or self.train is None:
            return entrant
        few = take_solved(self.train, share(torch.arange(min(max(samples, count()), len(self.train.noise)))))
        settings = RowSettings(ridge=RIDGE, batch_size=batch_size)
        try:
            params, _ = fit_rows(family, self.denoiser, few, settings, entrant.params, meter=self.meter)
        except ValueError:  # its grid has a level at which the reference has no state
            return entrant
        return replace(entrant, params=params, label=f"{entrant.label} + least squares")


def _sorted(placed: list[Placed]) -> list[Placed]:
    return sorted(placed, key=lambda one: one.rmse)


def _best_of_grids(placed: list[Placed]) -> list[Placed]:
    """The first of every grid in a sorted list; grids that make no difference to a student count as one."""
    best: dict[tuple[float, ...], Placed] = {}
    for one in placed:
        before = next(reversed(best.values()), None)
        if before is None or one.rmse > (1 + SAME) * before.rmse:
            best.setdefault(one.entrant.student.family.grid, one)
    return list(best.values())


def _note(ranks: list[Placed], samples: int, others: int) -> str:
    """Who won, over how many, and by how much."""
    note = f"{ranks[0].fitted.label} won over {others} others"
    if len(ranks) > 1:
        note += f"; on {samples} samples {ranks[0].rmse:.4f}, next {ranks[1].fitted.label} with {ranks[1].rmse:.4f}"
    return note


def _joined(ran: list[tuple[_Race, Student, Params, FitReport]], meter: Meter) -> FitReport:
    """The report of all races: from the first student's configured start to the winner of all."""
    best = min((report for *_, report in ran), key=lambda report: report.rmse)
    if len(ran) == 1:
        return best
    history = [ran[0][-1].history[0], meter.point(best.rmse)]
    notes = (f"{student.family.name} {report.rmse:.4f}: {report.note}" for _, student, _, report in ran)
    return FitReport.of("race", history, meter, "all rounds done", "; ".join(notes))
