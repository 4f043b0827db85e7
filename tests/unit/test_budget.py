"""Budgets: what is read, that a run costs no more, that what is set by hand stays, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

import solverdistill as sd
from solverdistill.evaluation.after_training import EvaluationSettings
from solverdistill.fits.gauss_newton.fit import GaussNewtonFit
from solverdistill.fits.least_squares.fit import LeastSquaresFit
from solverdistill.fits.protocol import FitPlan
from solverdistill.fits.race.fit import RaceFit
from solverdistill.training.budget import Budget, per_reference, within
from solverdistill.training.compose import compose
from solverdistill.training.config_files import find_configs
from solverdistill.training.configuration import Run
from solverdistill.training.run import with_comparison


def run(solver: str = "corrected", nfe: int | None = 4, **changed: Any) -> Run:
    config = compose(find_configs(), {"model": "mixture", "solver": solver, **changed.pop("choices", {})})
    config["solver"]["nfe"] = nfe
    config["solver"] |= changed.pop("solver_settings", {})
    config["targets"] |= {"cache": None, **changed}
    return Run.of(config)


def most_of(planned: Run) -> int:
    plan: FitPlan = planned.plan(None)
    samples = planned.targets.train_samples + planned.targets.validation_samples
    chosen = 0 if planned.choice is None else planned.choice.evaluations
    return chosen + samples * per_reference(planned) + sum(fit.expected(plan) for fit in planned.fits.values())


@pytest.mark.parametrize(
    "text, evaluations, seconds",
    [("2000evals", 2000, None), ("2000 evaluations", 2000, None), ("90s", None, 90.0), ("1.5 h", None, 5400.0)],
)
def test_a_budget_is_evaluations_or_a_time(text: str, evaluations: int | None, seconds: float | None) -> None:
    assert Budget.read(text) == Budget(text, evaluations, seconds)


@pytest.mark.parametrize("text", ["2000", 2000, "evals", "-5min", "0evals", "1e3evals", "20 minutes of work", True])
def test_anything_else_is_refused_before_any_work(text: Any) -> None:
    with pytest.raises(ValueError, match="write 2000evals, 90s, 20min or 2h"):
        sd.distill("mixture", budget=text, progress=False)


@pytest.mark.parametrize("evaluations", [800, 1_500, 3_000, 10_000, 30_000, 100_000])
@pytest.mark.parametrize("nfe", [4, 8])
def test_a_plan_costs_no_more_than_its_budget_and_uses_most_of_it(evaluations: int, nfe: int) -> None:
    planned = within(run("auto", nfe), Budget.read(f"{evaluations}evals"), (), "cpu")
    assert 0.5 * evaluations < most_of(planned) <= evaluations
    race, fit = planned.fits.values()
    assert isinstance(race, RaceFit)
    assert isinstance(fit, GaussNewtonFit if evaluations >= 2_000 else LeastSquaresFit)
    assert planned.config["planned_evaluations"] == evaluations
    assert planned.config["fit"]["race"]["first"] == race.first
    assert len(planned.rivals) == {800: 0, 1_500: 0, 3_000: 0, 10_000: 0, 30_000: 1, 100_000: 2}[evaluations]


def test_what_a_distilled_solver_took_is_within_its_budget_and_the_plan_is_in_its_file() -> None:
    done = sd.distill("mixture", "corrected", 4, budget="1200evals", targets={"cache": None}, progress=False)
    assert sum(report.evaluations for report in done.reports) <= 1_200
    assert done.rmse < done.reports[1].history[0].rmse
    assert "least_squares" in done.provenance["fit"]
    assert done.provenance["budget"] == {"asked": "1200evals", "evaluations": 1_200}


def test_a_budget_in_time_is_turned_into_evaluations() -> None:
    planned = within(run(), Budget.read("5s"), (), "cpu")
    assert planned.config["planned_evaluations"] > 100


def test_settings_that_were_given_stay() -> None:
    stated = ["targets.train_samples", "fit.race.first", "fit.gauss_newton.iterations"]
    configured = run(train_samples=40, choices={"fit": ["race", "gauss_newton"]})
    planned = within(configured, Budget.read("5000evals"), stated, "cpu")
    assert planned.targets.train_samples == 40 and planned.targets.validation_samples < 128
    race = planned.fits["race"]
    assert isinstance(race, RaceFit) and race.first == RaceFit().first and planned.fits["gauss_newton"] is not None


def test_what_costs_more_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"budget=1000evals pays for 1,000 evaluations, and the run takes [\d,]+"):
        within(run(), Budget.read("1000evals"), ["targets.train_samples"], "cpu")
    with pytest.raises(ValueError, match="budget=50evals"):
        within(run(), Budget.read("50evals"), (), "cpu")


def test_points_beside_evaluations_are_searched_for_less_or_left_out(caplog: pytest.LogCaptureFixture) -> None:
    by_depth = {"nfe": None, "solver_settings": {"depth": 2}}
    planned = within(run("auto", **by_depth), Budget.read("40000evals"), (), "cpu")
    assert list(planned.fits) == ["race", "gauss_newton", "placements"] and most_of(planned) <= 40_000
    assert list(within(run("auto", **by_depth), Budget.read("1500evals"), (), "cpu").fits) == ["race", "least_squares"]
    assert "points beside the evaluations are not tried" in caplog.text


@pytest.mark.parametrize("evaluations", [700, 3_000, 20_000])
def test_fits_without_derivatives_stay_so(evaluations: int) -> None:
    configured = run(choices={"fit": ["race", "least_squares"]})
    planned = within(configured, Budget.read(f"{evaluations}evals"), ["fit"], "cpu")
    assert list(planned.fits) == ["race", "least_squares"] and 0.5 * evaluations < most_of(planned) <= evaluations


def test_gradient_descent_is_shortened() -> None:
    planned = within(run(choices={"fit": "gradient"}), Budget.read("20000evals"), (), "cpu")
    fit: Any = planned.fits["gradient"]
    assert 1 < fit.iterations < 3_000 and most_of(planned) <= 20_000


def test_a_comparison_takes_a_tenth_or_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    for evaluations, enabled, curves in ((1_000, False, True), (60_000, True, False), (300_000, True, True)):
        planned = within(run(), Budget.read(f"{evaluations}evals"), (), "cpu", comparison=True)
        after, settings = with_comparison(planned, EvaluationSettings(), ())
        assert settings.enabled == enabled and bool(settings.curve_nfe) == curves
        if enabled:
            tested = after.targets.test_samples
            assert tested * per_reference(after) + settings.expected(4, 4, tested) <= 0.1 * evaluations
        kept, _ = with_comparison(planned, EvaluationSettings(), ["targets.test_samples"])
        assert kept is planned
    assert "no comparison at the end" in caplog.text
