"""Several starts of a race, of which Gauss-Newton takes the best on: who steps, who is left, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import solverdistill as sd
from solverdistill.fits.gauss_newton.fit import GaussNewtonFit
from solverdistill.fits.gauss_newton.halving import descend, plan_rounds
from solverdistill.fits.report import FitReport

TARGETS = {"train_samples": 64, "validation_samples": 64, "test_samples": 16, "cache": None}


@dataclass
class Listed:
    """A descent whose errors are listed; it stops at the last one."""

    errors: list[float]
    rounds: list[int] = field(default_factory=list)

    @property
    def rmse(self) -> float:
        return self.errors[min(sum(self.rounds), len(self.errors) - 1)]

    def go_on(self, steps: int, told: Callable[[float], None]) -> None:
        for _ in range(min(steps, len(self.errors) - 1 - sum(self.rounds))):
            self.rounds.append(1)
            told(self.rmse)


def test_the_better_half_goes_on_for_twice_as_long() -> None:
    best_start, late, early, worst = (
        Listed([1.0, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8]),
        Listed([3.0, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
        Listed([2.0, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]),
        Listed([4.0, 3.9, 0.1, 0.0, 0.0, 0.0, 0.0]),
    )
    field, heard = [best_start, late, early, worst], list[tuple[int, int, float]]()
    assert descend(field, 6, lambda *told: heard.append(told)) == 1
    assert [sum(one.rounds) for one in field] == [1, 6, 3, 1]
    assert [(step, steps) for step, steps, _ in heard] == [(i, 11) for i in range(1, 12)]
    assert heard[-1][2] == 0.2


def test_few_steps_end_the_rounds_and_of_equal_ones_the_first_is_left() -> None:
    field = [Listed([1.0, 0.5, 0.5]) for _ in range(3)]
    assert descend(field, 1) == 0 and [sum(one.rounds) for one in field] == [1, 1, 1]
    alone = Listed([1.0, 0.5, 0.4, 0.3])
    assert descend([alone], 30) == 0 and sum(alone.rounds) == 3


def reports(starts: int, **settings: Any) -> tuple[sd.Distilled, FitReport, FitReport]:
    fit = {"race": {"first": 8}, "gauss_newton": {"iterations": 4, "samples": 32, "starts": starts, **settings}}
    done = sd.distill("mixture", "corrected", 4, fit=fit, targets=TARGETS, progress=False)
    return done, done.reports[1], done.reports[2]


def test_a_run_descends_from_the_finalists_of_its_race() -> None:
    done, race, fitted = reports(4)
    one, same, alone = reports(1)
    assert race.rmse == same.rmse == alone.history[0].rmse and "start" not in alone.note
    assert fitted.note.endswith("of 4 went on") and done.rmse == fitted.rmse < race.rmse
    assert alone.evaluations < fitted.evaluations < 4 * alone.evaluations
    again, _, _ = reports(4)
    assert again.family == done.family and all(
        torch.equal(again.params[name], done.params[name]) for name in done.params
    )
    assert one.family.nfe == done.family.nfe == 4


def test_a_budget_is_that_of_all_descents_together() -> None:
    _, _, alone = reports(1, tries=1)
    step = alone.history[1].evaluations
    _, _, fitted = reports(4, tries=1, evaluations=3 * step)
    assert fitted.stopped == "budget spent" and 3 * step <= fitted.evaluations < 4 * step


def test_a_number_of_starts_is_checked() -> None:
    with pytest.raises(ValueError, match="fit.starts must be at least 1, not 0"):
        GaussNewtonFit(starts=0)


def test_descents_of_different_families_take_more_steps_before_they_are_compared() -> None:
    late = Listed([4.0, 3.0, 2.0, 0.5, 0.1, 0.1])
    field = [Listed([1.0, 0.9, 0.8, 0.8, 0.8, 0.8]), late]
    assert descend(field, 5, first=4) == 1 and [sum(one.rounds) for one in field] == [4, 5]
    assert plan_rounds(3, 30, 4) == [(3, 4), (2, 8), (1, 18)]
