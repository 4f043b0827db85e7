"""What a run is expected to cost: never less than it takes, not much more, and said before it begins."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import solverdistill as sd
from solverdistill.denoisers.wrappers import Counted
from solverdistill.evaluation.after_training import EvaluationSettings, compare_at_the_end
from solverdistill.references.shard_cache import ShardCache
from solverdistill.support import processes
from solverdistill.teachers.mixture import Mixture
from solverdistill.training import costs as costs_module
from solverdistill.training.costs import Costs, Part, evaluations_of, in_words, time_network

TARGETS = {"train_samples": 64, "validation_samples": 48, "test_samples": 24, "cache": None}
GRADIENT = {"iterations": 5, "batch_size": 8, "validations": 2}
NEWTON = {"iterations": 3, "patience": 3, "samples": 32}
REFERENCE = {"reference": {"steps": 12}}


def distil(solver: Any, nfe: int | None, fit: Any, teacher: Any = "mixture", **settings: Any) -> sd.Distilled:
    targets = {**TARGETS, **settings.pop("targets", REFERENCE)}
    return sd.distill(teacher, solver, nfe, fit=fit, targets=targets, progress=False, **settings)


def images() -> Mixture:
    """A mixture of small images, which a discriminator can look at."""
    generator = torch.Generator().manual_seed(0)
    return Mixture(torch.randn(3, 1, 8, 8, generator=generator), [1.0, 2.0, 1.0], [0.3, 0.2, 0.4])


CASES: list[tuple[Any, int | None, Any, float]] = [
    ("corrected", 4, {"race": {}, "gauss_newton": NEWTON}, 2.5),
    ("ld3", 4, {"race": {"lower_starts": False, "gits": False}, "gauss_newton": {**NEWTON, "checkpointing": True}}, 3),
    ("epd", 5, {"race": {"least_squares": False}, "point_search": {"samples": 16}}, 3),
    ("epd", 5, {"race": {}}, 2),
    ("gas", 4, {"gauss_newton": {**NEWTON, "jacobian": "exact", "sketches": 3}}, 2.5),
    ("gas", 4, {"gauss_newton": {**NEWTON, "jacobian": "exact", "samples": None, "tries": 2}}, 3),
    ("gas", 4, {"gauss_newton": {**NEWTON, "sketches": 3, "evaluations": 1500}}, 2),
    ("gas", 4, {"least_squares": {}}, 2),
    ("gas", 4, {"least_squares": {"form": "teacher_forced", "ridge": 0.0}}, 1.2),
    ("corrected", 4, {"least_squares": {"form": "local", "ridge": 1e-3, "samples": 16}}, 1.4),
    ("dode_ddim", 4, {"greedy": {"samples": 32}}, 1.01),
    ("gas", 4, {"gradient": GRADIENT}, 1.3),
    ("gas", 4, {"gradient": {**GRADIENT, "checkpointing": True, "validations": 5}}, 1.1),
    ("ld3", 4, {"relaxed": GRADIENT}, 1.3),
    ({"name": "parallel", "depth": 2}, None, {"placements": {"placements": 2, "final_iterations": 3}}, 4),
]


@pytest.mark.parametrize(("solver", "nfe", "fit", "times"), CASES)
def test_a_fit_never_takes_more_than_expected_nor_much_less(solver: Any, nfe: Any, fit: Any, times: float) -> None:
    check(distil(solver, nfe, fit), times)


def test_fits_of_papers_say_what_they_take() -> None:
    check(distil("gas", 4, {"adversarial": GRADIENT}, images()), 1.3)
    quick = {"learn_times": False, "name": "epd"}
    check(distil(quick, 8, {"published_epd": GRADIENT}, objective="published_epd"), 3)
    check(distil(quick, 14, {"published_epd": GRADIENT}, objective="published_epd"), 1.3)


def check(done: sd.Distilled, times: float) -> None:
    """The reports of a run against what its fits expect, references included."""
    plan = done.run.plan(lambda fit: None)
    expected = evaluations_of(plan, done.data)
    targets, *reports = done.reports
    assert targets.evaluations <= expected.pop("references") <= 1.2 * targets.evaluations
    if "placements" in expected:  # its report comes after those of the sequential solver's fits
        spent = [sum(report.evaluations for report in reports)]
    else:
        spent = [report.evaluations for report in reports]
    for (name, most), taken in zip(expected.items(), spent, strict=True):
        assert 0 < taken <= most <= times * taken, (name, taken, most)


def test_fits_with_nothing_to_do_cost_nothing() -> None:
    done = distil("ld3", 4, {"least_squares": {}, "point_search": {}, "gauss_newton": {"iterations": 1}})
    expected = evaluations_of(done.run.plan(lambda fit: None), done.data)
    assert (expected["least_squares"], expected["point_search"]) == (0, 0) and expected["gauss_newton"] > 0


@pytest.mark.parametrize("reference", [{"steps": 12}, {"solver": "heun", "steps": 6}, {"nested": 3}])
def test_references_that_the_cache_has_cost_nothing(reference: dict[str, Any], tmp_path: Path) -> None:
    targets = {**TARGETS, "reference": reference, "cache": str(tmp_path), "chunk": 16}
    done = distil("gas", 4, {"gauss_newton": {"iterations": 1}}, targets={**targets, "train_samples": 24})
    plan, each = done.run.plan(lambda fit: None), done.reports[0].evaluations / (32 + 48)
    work = evaluations_of(plan, done.data, 100)
    assert work["references"] == 0 and 32 * each <= work["comparison"] - 100 <= 32 * (each + 1)
    done.data.split("test")
    assert evaluations_of(plan, done.data, 100)["comparison"] == 100


def test_shards_are_missing_until_they_are_made(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, "test", {}, 4)
    assert cache.missing(range(3)) == [0, 1, 2] and not any(tmp_path.iterdir())
    cache.fill([1], lambda shard: {"x": torch.zeros(4)})
    assert cache.missing(range(3)) == [0, 2]
    cache.path(1).unlink()
    assert cache.missing([1]) == [1]


@pytest.mark.parametrize(("solver", "nfe", "depth", "curve"), [("gas", 3, 3, [3, 4]), ("epd", 5, 3, [])])
def test_a_comparison_never_takes_more_than_expected(
    solver: str, nfe: int, depth: int, curve: list[int], tmp_path: Path
) -> None:
    done = distil(solver, nfe, {"gauss_newton": {"iterations": 1}})
    settings = EvaluationSettings(curve_nfe=curve, curve_samples=8)
    counted, test = Counted(done.run.denoiser), done.data.split("test")
    compare_at_the_end(settings, tmp_path, solver, done.program, done.run.teacher, counted, test)
    assert done.family.depth == depth
    assert counted.images <= settings.expected(nfe, depth, len(test)) <= 1.6 * counted.images


class Slow(Mixture):
    """Takes five milliseconds per image, and ten going back."""

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        time.sleep(0.005 * len(x))
        denoised = super().forward(x, alpha, sigma, cond)
        if denoised.requires_grad:
            denoised.register_hook(lambda gradient: time.sleep(0.01 * len(x)))
        return denoised


def test_the_time_is_that_of_the_network_on_a_few_images() -> None:
    run = distil("gas", 4, {"gauss_newton": {"iterations": 1}}).run
    slow = Slow([[-1.0], [1.0]], [1.0, 1.0], [0.1, 0.1])
    vars(run).update(teacher=slow, denoiser=Counted(slow))
    began = time.perf_counter()
    speed = time_network(run, "cpu", 12, differentiate=True)
    assert time.perf_counter() - began < 10 and run.denoiser.images <= 1 + 1 + 12 + 2 * 4
    assert 0.005 <= speed.forward < 0.05 and 0.01 <= speed.derivative < 0.1
    forward, same = time_network(run, "cpu", 12, differentiate=False)
    assert 0.005 <= forward == same < 0.05


def test_a_network_without_derivatives_is_timed_forward() -> None:
    run = distil("gas", 4, {"gauss_newton": {"iterations": 1}}).run

    class Refusing(Slow):
        def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("no derivatives")
            return super().forward(x, alpha, sigma, cond)

    refusing = Refusing([[-1.0], [1.0]], [1.0, 1.0], [0.1, 0.1])
    vars(run).update(teacher=refusing, denoiser=Counted(refusing))
    forward, derivative = time_network(run, "cpu", 4, differentiate=True)
    assert 0.005 <= forward == derivative < 0.05


def test_it_is_said_before_counted_down_and_compared_with_what_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    fit = {"race": {"lower_starts": False}, "gauss_newton": {"iterations": 4, "samples": 32}}
    given = {"fit": fit, "targets": {**TARGETS, **REFERENCE}, "device": "cpu"}
    done = sd.distill("mixture", "gas", 4, **given, progress=True)
    work = evaluations_of(done.run.plan(lambda fit: None), done.data)
    said = " ".join(capsys.readouterr().out.split())
    before, after = said.split("reference trajectories (train)", 1)
    for name, number in work.items():
        assert f"| {name} | {number:,} | " in before
    assert f"| all | {sum(work.values()):,} | " in before
    assert f"to go, at most: {work['race'] + work['gauss_newton']:,} evaluations, " in after
    assert f"to go, at most: {work['gauss_newton']:,} evaluations, " in after
    assert f"references and fits took {done.evaluations:,} evaluations, " in after
    assert f"expected, at most: {sum(work.values()):,} evaluations, " in after
    again = sd.distill("mixture", "gas", 4, **given, progress=False)  # timing leaves the numbers alone
    assert all(torch.equal(value, again.params[name]) for name, value in done.params.items())


def test_a_tiny_run_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(costs_module, "time_network", None)
    targets = {**TARGETS, **REFERENCE, "train_samples": 16, "validation_samples": 16, "chunk": 16}
    given = {"fit": {"gauss_newton": {"iterations": 1}}, "targets": targets, "device": "cpu"}
    done = sd.distill("mixture", "gas", 4, **given, progress=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "evaluations, too few to time" in said and "to go" not in said
    assert f"references and fits took {done.evaluations:,} evaluations" in said


def test_parts_add_up() -> None:
    costs = Costs((Part("references", 100, 30.0), Part("race", 20, 40.0), Part("comparison", 3, 7200.0)), True)
    assert str(costs.total) == "123 evaluations, 2.0 h"
    assert str(costs.since("race")) == "23 evaluations, 2.0 h"
    assert str(costs.until("comparison")) == "120 evaluations, 1.2 min"
    assert str(costs.until("none")) == str(costs.total) and in_words(59.4) == "59 s"


def test_samples_dealt_out_count_as_many_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 4)
    assert [processes.dealt(samples) for samples in (0, 1, 4, 5)] == [0, 4, 4, 8]
