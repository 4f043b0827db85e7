"""Fits whose losses, params or derivatives are not finite: they keep the last good state, and it is exported."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import composed
from torch import Tensor

from solverdistill import distill, load_solver
from solverdistill.teachers.mixture import Mixture, toy_mixture
from solverdistill.training import stages
from solverdistill.training.distilled import Distilled
from solverdistill.training.run import train

SMALL = {"train_samples": 16, "validation_samples": 8, "cache": None, "reference": {"solver": "euler", "steps": 12}}


class Breaking(Mixture):
    """A mixture whose network gives nan for the first sample of some batches of the fits, counted from their first.

    With `with_graph` only batches that a graph is kept for are counted, and break.
    """

    broken: range
    with_graph: bool
    calls: int

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        denoised = super().forward(x, alpha, sigma, cond)
        if self.calls < 0 or (self.with_graph and not torch.is_grad_enabled()):
            return denoised
        self.calls += 1
        if self.calls - 1 not in self.broken:
            return denoised
        return torch.cat([denoised[:1] * torch.nan, denoised[1:]])


ALWAYS = range(1 << 40)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a teacher that begins to count when the targets are there."""

    def make(broken: range = ALWAYS, with_graph: bool = True) -> Breaking:
        toy = toy_mixture()
        teacher = Breaking(toy.means, toy.weights, toy.stds)
        teacher.broken, teacher.with_graph, teacher.calls = broken, with_graph, -1
        original = stages.make_splits

        def then_count(*arguments: Any) -> Any:
            report = original(*arguments)
            teacher.calls = 0
            return report

        monkeypatch.setattr(stages, "make_splits", then_count)
        return teacher

    return make


def fitted(teacher: Any, solver: str = "gas", fit: Any = None, **options: Any) -> Distilled:
    settings = {"gradient": {"iterations": 24, "batch_size": 4, "validations": 4}}
    return distill(teacher, solver, fit=settings if fit is None else fit, targets=SMALL, device="cpu", **options)


def assert_exports(done: Distilled, folder: Path) -> None:
    """The file holds a solver whose error is the one that is reported."""
    program = load_solver(done.save(folder / "solver.json"))
    assert bool(torch.isfinite(torch.cat([program.A, program.B], dim=1)).all())
    assert all(bool(torch.isfinite(value).all()) for value in done.params.values())


def test_a_step_that_is_not_finite_is_left_out(breaking: Any, tmp_path: Path) -> None:
    nfe = 5
    once = fitted(breaking(range(7 * nfe, 7 * nfe + 1)), nfe=nfe)  # the eighth batch
    assert "1 steps were not finite and not taken" in once.reports[-1].note
    assert "rolled back" not in once.reports[-1].note
    assert once.reports[-1].stopped == "all iterations done"
    assert once.rmse < once.reports[-1].history[0].rmse
    assert_exports(once, tmp_path)


def test_steps_that_are_never_finite_end_the_fit_at_its_best_state(breaking: Any, tmp_path: Path) -> None:
    nfe = 5
    never = fitted(breaking(), nfe=nfe)
    report = never.reports[-1]
    assert report.stopped == "10 steps in a row were not finite" and never.rmse == report.history[0].rmse
    torch.testing.assert_close(never.params, never.family.init(0), check_dtype=False, rtol=1e-6, atol=1e-6)
    later = fitted(breaking(range(13 * nfe, 1 << 40)), nfe=nfe)  # after two validations
    assert later.reports[-1].stopped == "10 steps in a row were not finite"
    assert later.rmse < later.reports[-1].history[0].rmse
    assert_exports(later, tmp_path)


@pytest.mark.parametrize("rate", [1e3, 1e30], ids=str)
@pytest.mark.parametrize("solver", ["corrected", "bns", "epd", "dss"])
def test_params_that_are_no_solver_go_back_to_the_best(solver: str, rate: float, tmp_path: Path) -> None:
    done = fitted(toy_mixture(), solver, optimizer={"lr": rate})
    assert math.isfinite(done.rmse) and done.rmse <= done.reports[-1].history[0].rmse
    assert_exports(done, tmp_path)


@pytest.mark.parametrize("fit", ["relaxed", "adversarial", "published_epd"])
def test_other_fits_with_an_optimizer_do_the_same(fit: str, breaking: Any, tmp_path: Path) -> None:
    objective = "published_epd" if fit == "published_epd" else "trajectory"
    settings = {fit: {"iterations": 12, "batch_size": 4, "validations": 2}}
    teacher = breaking()
    teacher.shape = (1, 2, 3)  # an image, which a discriminator looks at
    done = fitted(teacher, {"name": "epd", "learn_times": False}, settings, objective=objective)
    assert math.isfinite(done.rmse)
    assert_exports(done, tmp_path)


@pytest.mark.parametrize("with_graph", [True, False])
@pytest.mark.parametrize(
    ("solver", "fits"),
    [
        ("corrected", ["race", "gauss_newton"]),
        ("corrected", ["least_squares", "gauss_newton"]),
        ("epd", ["race", "point_search"]),
        ("bns", ["gauss_newton", "gradient"]),
        ("dode_ddim", ["greedy"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
def test_what_was_reached_is_exported(
    solver: str, fits: list[str], with_graph: bool, breaking: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Without `with_graph` nothing is finite from the first evaluation of the first fit on.
    done = fitted(breaking(with_graph=with_graph), solver, fits)
    assert math.isfinite(done.rmse) == with_graph
    assert_exports(done, tmp_path)


def test_the_run_exports_before_it_makes_the_samples_of_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path / "home"))
    folder, original = tmp_path / "run", Mixture.forward

    def breaking(self: Mixture, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        denoised = original(self, x, alpha, sigma, cond)
        return denoised * torch.nan if (folder / "solver.json").exists() else denoised

    monkeypatch.setattr(Mixture, "forward", breaking)
    tiny = ["logger=csv", "trainer=cpu", "targets.train_samples=4", "targets.validation_samples=2"]
    with pytest.raises(
        ValueError, match=r"test sample 0 \(global index 2147483648\) is not finite from .*, and 31 more"
    ):
        train(composed(folder, "model=mixture", "solver=gas", tiny=tiny))
    assert json.loads((folder / "solver.json").read_text())["provenance"]["metrics"]["validation_rmse"] > 0


def test_a_student_without_finite_end_points_is_exported_and_said(
    breaking: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        done = fitted(breaking(with_graph=False), "gas", ["gauss_newton"])
    assert done.provenance["metrics"]["validation_rmse"] is None
    assert_exports(done, tmp_path)
