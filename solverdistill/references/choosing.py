"""A reference that knows its own error: grid and steps are chosen by measuring candidates on a few samples.

Every grid is solved with 9 and with 19 steps. The one that moved least climbs on, to 39, 79 and 159 steps, until what
is left of its error, by the rate at which the differences fall, is small enough, and a witness, the solve of another
grid with as many steps, does not contradict. Against that solve, the anchor, all others are measured, and the cheapest
that is exact enough is taken, at a number of steps between two rungs where that saves some. Where the error does not
fall regularly, or the witness contradicts, the network is rough in time: then all grids are solved on the finest rung
that can be paid, and the two that agree best tell the error. Rungs are 2 n + 1 steps, since solves of n and of 2 n
steps on an even grid can agree on a wrong result, where the network's features run through a whole number of cycles in
each step.

Enough is a tenth of the error that the student is expected to reach: `STUDENT` times that of the best classical solver
of as many sequential evaluations, played from the same noise. The fits of this package end at 0.3 to 0.75 of it.

Everything that is solved is kept in the cache, so that a sweep over students measures once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from solverdistill.denoisers.base import Teacher
from solverdistill.references.solving import Reference
from solverdistill.references.targets import TargetSettings
from solverdistill.references.trials import Trials, distance
from solverdistill.support.processes import processes, total

COARSE, MOST = 9, 159  # steps of the first rung and of the last
SHARES = ((30_000, 0.03), (3_000, 0.10))  # of the evaluations of a run that choosing may take, by its size
SAMPLES = (8, 4, 2, 1)
STUDENT = 0.4  # expected error of a student, as a share of the best classical solver's
PART = 0.1  # of that error that the reference may have
LEAST = 1e-6  # of single precision nothing finer is asked, in data units
CONTRADICTS = 1.5  # times the sum of what is left of two solves that are further apart
COARSELY = 3.0  # a student's error below so many times the reference's says little
ORDER = 2.0  # at which errors fall; that of a multistep solver started from noise alone
ROUGH = 2.5  # times by which a doubling of the steps lowers an error that does not fall as its order says
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Choice:
    """A reference, and what is known of its error.

    Args:
        reference: The reference solver.
        error: RMSE of its end points against the exact solution, mean over the samples, in data units; None where it
            was not measured.
        expected: RMSE that the student is expected to reach.
        samples: Samples that were measured.
        falls: Times by which the last doubling of the steps lowered the error, where the network's dependence on time
            is rough; None where it is smooth.
        apart: Distance of solves on two grids that each promised to be nearer to the exact solution; None where they
            agree.
        extrapolated: Whether the error is that of fewer steps, lowered as its order says.
        evaluations: Images that the network evaluated to find it.
    """

    reference: Reference
    error: float | None = None
    expected: float | None = None
    samples: int = 0
    falls: float | None = None
    apart: float | None = None
    extrapolated: bool = False
    evaluations: int = 0

    @property
    def facts(self) -> dict[str, float | int]:
        """What a solver's file says of the error."""
        return {} if self.error is None else {"error": float(f"{self.error:.3g}"), "error_samples": self.samples}

    def summary(self) -> str:
        """The choice in a sentence or two."""
        one = self.reference
        grid = "" if one.nested is not None else f" on the {one.grid} grid"
        what = f"reference {one.solver}, {one.steps} steps{grid}"
        if self.error is None or self.expected is None:
            return f"{what}; reference error not measured"
        how = "extrapolated from" if self.extrapolated else "on"
        samples = f"{self.samples} sample{'s' * (self.samples > 1)}"
        said = f"{what}: RMSE {self.error:.2g} from the exact solution, {how} {samples}"
        said += f" (students are expected at {self.expected:.2g})"
        if self.error > PART * self.expected:
            said += f", above the {PART * self.expected:.2g} wanted"
        if self.falls is not None:
            said += f"; rough in time: twice the steps divide the error by {self.falls:.1f}, where 4 is usual"
        elif self.apart is not None:
            said += f"; rough in time: two grids that promised to be nearer end {self.apart:.2g} apart"
        if self.falls is not None or self.apart is not None:
            said += (
                ". The network changes faster with time than coarse references see: they are wrong without showing it"
            )
        return said


def allowed(size: int) -> int:
    """Evaluations that choosing may take in a run of so many; 0 for a run that is too small to measure."""
    return next((math.floor(share * size) for least, share in SHARES if size >= least), 0)


def is_coarse(error: float, reference_error: float | None) -> bool:
    """Whether a student's error is too near to the reference's own to say much."""
    return reference_error is not None and error <= COARSELY * reference_error


def choose_reference(
    settings: TargetSettings,
    teacher: Teacher,
    denoiser: Any,
    nfe: int,
    size: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Choice:
    """Choose what `settings.measure` leaves open of the reference.

    Deterministic, and the same in every process of a group: each measures (sharing the work through the cache), and the
    first one's choice holds.

    Args:
        settings: The reference, what is open of it, seed and cache.
        teacher: Gives shape, path, noise range and conditions.
        denoiser: The teacher, possibly guided; on `device`.
        nfe: Sequential evaluations of the student.
        size: About how many evaluations the run takes; choosing takes a small share of them.
        device: Where the network runs.
        progress: Called with ("choice", spent, allowed).
    Returns:
        The choice; the settings' own reference, its error unknown, where nothing is open or the run is too small.
    """
    plain, allowance = Choice(settings.reference), allowed(size)
    if not settings.measure or not allowance:
        return plain
    for samples in SAMPLES:
        trials = Trials(settings, teacher, denoiser, device, samples)
        if not trials.grids:
            break
        search = _Search(trials, nfe, allowance, progress or (lambda what, done, of: None))
        least = search.whole_cost() if samples > SAMPLES[-1] else search.first_cost()
        if least <= allowance:
            found = _agreed(search.run(), trials.grids)
            return replace(found, evaluations=trials.evaluations)
    return plain


def _agreed(choice: Choice, grids: list[Reference]) -> Choice:
    """The first process's choice, in every process."""
    if choice.error is None:  # nothing was finite, which all processes have found alike
        return choice
    keys = [(one.grid, one.rho) for one in grids]
    at = keys.index((choice.reference.grid, choice.reference.rho))
    known = [choice.error, choice.expected, choice.falls, choice.apart]
    numbers = [at, choice.reference.steps, choice.samples, choice.extrapolated, *known]
    values = torch.tensor([-1.0 if value is None else value for value in numbers], dtype=torch.float64)
    first = total(values if processes()[0] == 0 else torch.zeros_like(values)).tolist()
    at, steps, samples = (int(value) for value in first[:3])
    error, expected, falls, apart = (None if value < 0 else value for value in first[4:])
    reference = replace(grids[at], steps=steps)
    return Choice(reference, error, expected, samples, falls, apart, bool(first[3]))


def _above(steps: int) -> int:
    return 2 * steps + 1


def _below(reference: Reference) -> Reference:
    return replace(reference, steps=(reference.steps - 1) // 2)


def _same_grid(first: Reference, second: Reference) -> bool:
    return (first.grid, first.rho) == (second.grid, second.rho)


class _Search:
    """The search for the cheapest reference that is exact enough."""

    def __init__(self, trials: Trials, nfe: int, allowance: int, progress: Progress) -> None:
        self.trials, self.nfe, self.allowance, self.progress = trials, nfe, allowance, progress
        self.fixed = trials.settings.reference.steps if "steps" not in trials.settings.measure else None
        self.first = COARSE if self.fixed is None else self.fixed
        self.best: Reference = trials.settings.reference  # the finest solve of the best grid
        self.apart = 0.0  # its distance from a witness that contradicts it
        self.falls: float | None = None

    def first_cost(self) -> int:
        """Evaluations up to the first estimate of an error."""
        trials, rungs = self.trials, (self.first, _above(self.first))
        cost = sum(trials.cost(replace(one, steps=steps)) for one in trials.grids for steps in rungs)
        return trials.samples * (cost + trials.classical_cost(self.nfe))

    def rungs(self, top: int) -> list[int]:
        """Steps of the rungs up to `top`, ascending."""
        found = [self.first]
        while _above(found[-1]) <= top:
            found.append(_above(found[-1]))
        return found

    def whole_cost(self) -> int:
        """Evaluations up to the finest rung."""
        rungs = [] if self.fixed is not None else self.rungs(MOST)[2:]
        finer = sum(max(self.trials.cost(replace(one, steps=steps)) for one in self.trials.grids) for steps in rungs)
        return self.first_cost() + self.trials.samples * finer

    def run(self) -> Choice:
        """Measure, and choose."""
        for steps in (self.first, _above(self.first)):
            solved = [self.solved(replace(one, steps=steps)) for one in self.trials.grids]
        self.best = min(solved, key=self.moved)
        self.trials.classical(self.nfe)
        found = self.climbed() if self.fixed is None else self.at_fixed_steps()
        self.progress("choice", self.allowance, self.allowance)
        return found

    def solved(self, reference: Reference) -> Reference:
        """Solve a candidate, and say how far the search is."""
        self.trials.end(reference)
        self.progress("choice", min(self.trials.spent, self.allowance - 1), self.allowance)
        return reference

    def affords(self, references: list[Reference], halve: bool = False, least: int = 1) -> bool:
        """Whether candidates can be solved; where they must, on half of the samples and half of these."""
        trials, cost = self.trials, sum(self.trials.cost(one) for one in references)
        samples = trials.samples
        while halve and samples > least and trials.spent + cost * samples > self.allowance:
            samples //= 2
        if trials.spent + cost * samples > self.allowance:
            return False
        trials.samples = samples
        return True

    def moved(self, reference: Reference) -> float:
        """Distance from the solve on the rung below."""
        return distance(self.trials.end(reference), self.trials.end(_below(reference)))

    def fall(self, reference: Reference) -> float | None:
        """Times by which the last doubling of the steps lowered the error; None where there was one only."""
        below = _below(reference)
        return None if below.steps <= self.first else self.moved(below) / max(self.moved(reference), 1e-12)

    def left(self) -> float:
        """What is left of the error of the finest solve.

        The sum of what further doublings would move it by; or its distance from a witness that contradicts it.
        """
        fall = min(max(self.fall(self.best) or 2.0, 4 / 3), 2**ORDER)
        return max(self.moved(self.best) / (fall - 1), self.apart)

    def contradicted(self) -> bool:
        """Whether a witness finds the finest solve too far off."""
        self.ask_witness()
        return self.left() > self.wanted()

    def ask_witness(self) -> None:
        """Compare the finest solve with that of another grid, where there is one and it can be paid."""
        others = [one for one in self.trials.grids if not _same_grid(one, self.best)]
        if not others:
            return
        coarse = [replace(one, steps=_above(self.first)) for one in others]
        near = min(coarse, key=self.error)
        witness = replace(near, steps=self.best.steps)
        if not self.affords([witness]):
            return
        between = distance(self.trials.end(self.solved(witness)), self.trials.end(self.best))
        ratio = witness.steps / near.steps
        own = distance(self.trials.end(witness), self.trials.end(near)) / (ratio**ORDER - 1) if ratio > 1 else math.inf
        if between > CONTRADICTS * (self.left() + own):
            self.apart = between

    def expected(self) -> float:
        """RMSE that the student is expected to reach; where all classical solvers diverge, a share of the data's size."""
        anchor, played = self.trials.end(self.best), self.trials.classical(self.nfe)
        best = min(distance(end, anchor) for end in played.unbind(1))
        return STUDENT * min(best, distance(anchor, torch.zeros_like(anchor)))

    def wanted(self) -> float:
        """Error that is small enough."""
        return max(PART * self.expected(), LEAST)

    def error(self, reference: Reference) -> float:
        """Error of a solved candidate, against the anchor and with the anchor's own."""
        if reference == self.best:
            return self.left()
        return math.hypot(distance(self.trials.end(reference), self.trials.end(self.best)), self.left())

    def roughness(self) -> float | None:
        """The fall, where it is not what the order promises; the first rungs are too coarse to tell."""
        fall = self.fall(self.best)
        return fall if fall is not None and fall < ROUGH else None

    def choice(self, reference: Reference, error: float, extrapolated: bool = False) -> Choice:
        """A choice with all that is known; the settings' own where everything has diverged."""
        if not math.isfinite(error):
            return Choice(self.trials.settings.reference)
        known = error, self.expected(), self.trials.samples, self.falls, self.apart or None, extrapolated
        return Choice(reference, *known)

    def at_fixed_steps(self) -> Choice:
        """The best grid at the steps that were given; the anchor is its solve with twice as many."""
        solved = [replace(one, steps=self.first) for one in self.trials.grids]
        chosen = min(solved, key=self.error)
        return self.choice(chosen, self.error(chosen))

    def climbed(self) -> Choice:
        """Climb until the anchor is exact enough, then take the cheapest candidate that is."""
        while self.left() > self.wanted() or self.contradicted():
            self.falls = self.roughness()
            if self.falls is not None or self.apart:
                return self.agreed_on()
            finer = replace(self.best, steps=_above(self.best.steps))
            if finer.steps > MOST or not self.affords([finer], halve=True):
                return self.beyond()
            self.best = self.solved(finer)
        wanted = self.wanted()
        for candidate in sorted(self.candidates(wanted), key=lambda one: one.steps):
            known = candidate in self.solved_rungs(candidate)
            if (known or self.affords([candidate])) and (error := self.error(self.solved(candidate))) <= wanted:
                return self.choice(candidate, error)
        return self.choice(self.best, self.left())

    def agreed_on(self) -> Choice:
        """On a network that is rough in time: the grids that agree best on the finest rung that can be paid.

        What solves on one grid moved by says little there, since they may see the network at the same moments; solves
        on two grids do not, and hardly agree on a wrong result.
        """
        rungs = [steps for steps in self.rungs(MOST) if steps > self.best.steps]
        for steps in reversed(rungs):
            fine = [replace(one, steps=steps) for one in self.trials.grids]
            if self.affords(fine, halve=True, least=2):
                break
        else:
            fine = [self.best]
        ends = {one: self.trials.end(self.solved(one)) for one in fine}
        if len(fine) == 1:
            self.best = fine[0]
            return self.choice(
                self.best, max(distance(ends[self.best], self.trials.end(_below(self.best))), self.left())
            )
        pairs = combinations(fine, 2)
        apart, pair = min(
            ((distance(ends[one], ends[other]), (one, other)) for one, other in pairs), key=lambda p: p[0]
        )
        others = [one for one in fine if one not in pair]
        return self.choice(min(pair, key=lambda one: sum(distance(ends[one], ends[other]) for other in others)), apart)

    def solved_rungs(self, grid: Reference) -> list[Reference]:
        """The solves of a grid that were made on rungs, coarse ones first."""
        top = self.best.steps if _same_grid(grid, self.best) else _above(self.first)
        return [replace(grid, steps=steps) for steps in self.rungs(top)]

    def candidates(self, wanted: float) -> list[Reference]:
        """Of every grid the steps that should be enough; where the error does not fall regularly, rungs alone."""
        found: list[Reference] = []
        for grid in self.trials.grids:
            solved = self.solved_rungs(grid)
            found += [one for one in solved if self.error(one) <= wanted][:1]
            above = [one for one in solved if self.error(one) > wanted]
            if above and math.isfinite(self.error(above[-1])):
                steps = above[-1].steps * (self.error(above[-1]) / wanted) ** (1 / ORDER)
                found.append(replace(grid, steps=4 * math.ceil(steps / 4)))
        return [one for one in found if one.steps <= self.best.steps]

    def beyond(self) -> Choice:
        """Where the wanted error was not reached: the steps that should, or the finest that was solved."""
        left, wanted = self.left(), self.wanted()
        if not math.isfinite(left):
            return self.choice(self.best, left)
        steps = min(MOST, 4 * math.ceil(self.best.steps * (left / wanted) ** (1 / ORDER) / 4))
        if steps <= self.best.steps:
            return self.choice(self.best, left)
        error = left * (self.best.steps / steps) ** ORDER
        return self.choice(replace(self.best, steps=steps), error, extrapolated=True)
