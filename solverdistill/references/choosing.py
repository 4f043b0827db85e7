"""A reference that knows its own error: grid and steps are chosen by measuring candidates on a few samples.

Every grid is solved with 9 and with 19 steps. The one that moved least climbs on, to 39, 79 and 159 steps, until what
is left of its error, by the rate at which the differences fall, is small enough, and a witness, the solve of another
grid with as many steps, does not contradict. Against that solve, the anchor, all others are measured, and the cheapest
that is exact enough is taken, at a number of steps between two rungs where that saves some. Where the error does not
fall regularly, or the witness contradicts, the network is rough in time: then all grids are solved on the finest rung
that can be paid, and the two that agree best tell the error. Rungs are 2 n + 1 steps, since solves of n and of 2 n
steps on an even grid can agree on a wrong result, where the network's features run through a whole number of cycles in
each step.

Enough is a tenth of the error that the student is expected to reach: `climbing.STUDENT` times that of the best
classical solver of as many sequential evaluations, played from the same noise. The fits of this package end at 0.3 to
0.75 of it.

Everything that is solved is kept in the cache, so that a sweep over students measures once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from solverdistill.denoisers.base import Teacher
from solverdistill.references.choice import Choice
from solverdistill.references.climbing import Progress, Search
from solverdistill.references.solving import Reference
from solverdistill.references.targets import TargetSettings
from solverdistill.references.trials import Trials
from solverdistill.support.processes import processes, total

SHARES = ((30_000, 0.03), (3_000, 0.10))  # of the evaluations of a run that choosing may take, by its size
SAMPLES = (8, 4, 2, 1)


def allowed(size: int) -> int:
    """Evaluations that choosing may take in a run of so many; 0 for a run that is too small to measure."""
    return next((math.floor(share * size) for least, share in SHARES if size >= least), 0)


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
        search = Search(trials, nfe, allowance, progress or (lambda what, done, of: None))
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
