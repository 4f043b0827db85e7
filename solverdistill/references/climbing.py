"""The search for the cheapest reference that is exact enough; `choosing` says how it goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import torch

from solverdistill.references.choice import PART, Choice
from solverdistill.references.solving import Reference
from solverdistill.references.trials import Trials, distance

COARSE, MOST = 9, 159  # steps of the first rung and of the last
STUDENT = 0.4  # expected error of a student, as a share of the best classical solver's
LEAST = 1e-6  # of single precision nothing finer is asked, in data units
CONTRADICTS = 1.5  # times the sum of what is left of two solves that are further apart
ORDER = 2.0  # at which errors fall; that of a multistep solver started from noise alone
ROUGH = 2.5  # times by which a doubling of the steps lowers an error that does not fall as its order says
ENOUGH = 3  # grids whose finest solves tell which agree, where not all can be paid
Progress = Callable[[str, int, int], None]


def _above(steps: int) -> int:
    return 2 * steps + 1


def _below(reference: Reference) -> Reference:
    return replace(reference, steps=(reference.steps - 1) // 2)


def _same_grid(first: Reference, second: Reference) -> bool:
    return (first.grid, first.rho) == (second.grid, second.rho)


class Search:
    """The search for the cheapest reference that is exact enough.

    Args:
        trials: Solves candidates.
        nfe: Sequential evaluations of the student.
        allowance: Evaluations that the search may take.
        progress: Called with ("choice", spent, allowance).
    """

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
        """RMSE that the student is expected to reach; a share of the data's size where classical solvers diverge."""
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
        finest = ([replace(one, steps=steps) for one in self.trials.grids] for steps in reversed(rungs))
        for fine in (some for every in finest for some in (every, every[:ENOUGH])):
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
        chosen = min(pair, key=lambda one: sum(distance(ends[one], ends[other]) for other in others))
        for cheaper in self.solved_rungs(chosen):
            off = distance(self.trials.end(cheaper), ends[chosen])
            if off <= apart / 2:  # finer steps would cost more and hardly say more
                return self.choice(cheaper, math.hypot(off, apart))
        return self.choice(chosen, apart)

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
