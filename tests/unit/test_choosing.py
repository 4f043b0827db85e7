"""References that measure themselves: what is chosen, how true the stated error is, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import solverdistill as sd
from solverdistill.denoisers.wrappers import Counted
from solverdistill.evaluation.comparison import compare_with_classical
from solverdistill.evaluation.evaluate import evaluate
from solverdistill.evaluation.plan import EvaluationPlan
from solverdistill.evaluation.reports.html_report import html_table
from solverdistill.evaluation.reports.publishing import publish
from solverdistill.evaluation.reports.table_files import write_markdown
from solverdistill.families import build
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import Flow
from solverdistill.references import choosing
from solverdistill.references.choice import Choice
from solverdistill.references.choosing import allowed, choose_reference
from solverdistill.references.seeding import seeded_noise
from solverdistill.references.solving import Reference
from solverdistill.references.targets import TargetSettings, make_targets
from solverdistill.references.trials import distance
from solverdistill.teachers.mixture import Mixture, toy_mixture
from solverdistill.training.configuration import make_target_settings

OPEN = ("grid", "steps")
LARGE = 72_000


class Rough(Mixture):
    """A flow mixture whose velocity runs through 40 cycles in a unit of time, as networks with high features do."""

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        time = (sigma / (alpha + sigma)).double()[:, None]
        phases = torch.arange(x.shape[1], dtype=torch.float64)
        ripple = 0.6 * torch.sin(2 * math.pi * 40 * time + phases)
        return super().forward(x, alpha, sigma, cond) + (time * ripple).to(x.dtype)


def rough() -> Rough:
    toy = toy_mixture()
    return Rough(toy.means, toy.weights, toy.stds, name="rough", path=Flow(), noise_range=(0.999, 0.001))


def settings(cache: Path | None = None, **options: Any) -> TargetSettings:
    options = {"reference": Reference(), "measure": OPEN, **options}
    return TargetSettings(cache=None if cache is None else str(cache), **options)


def choose(teacher: Mixture, nfe: int = 6, size: int = LARGE, **options: Any) -> tuple[Choice, int]:
    """The choice, and the images that the network saw for it."""
    counted = Counted(teacher)
    return choose_reference(settings(**options), teacher, counted, nfe, size), counted.images


def error_of(reference: Reference, teacher: Mixture, samples: int = 64) -> float:
    """Distance of its end points from an adaptive solve of the first samples."""
    noise, cond = seeded_noise(range(samples), teacher)
    grid = "time_uniform" if isinstance(teacher.path, Flow) else "polynomial"
    exact = Reference("dopri5", 40, grid, 1.0 if grid == "time_uniform" else 7.0, rtol=1e-8, atol=1e-8)
    first, second = (one.solve(teacher, teacher, noise, cond).end() for one in (reference, exact))
    return distance(first, second)


def test_the_error_of_a_gaussian_is_the_one_that_is_known() -> None:
    mean, std = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64), 0.3
    teacher = Mixture(mean, [1.0], [std])
    choice, _ = choose(teacher)
    noise, _ = seeded_noise(range(choice.samples), teacher)
    start, end = teacher.noise_range
    exact = mean + (noise.double() * start - mean) * math.sqrt((std**2 + end**2) / (std**2 + start**2))
    true = distance(choice.reference.solve(teacher, teacher, noise).end(), exact)
    assert choice.error is not None and choice.expected is not None
    assert true / 1.5 <= choice.error <= 2 * true
    assert choice.error <= 0.1 * choice.expected and choice.falls is None and choice.apart is None


@pytest.mark.parametrize("nfe", [4, 6, 10])
def test_the_cheapest_reference_that_is_exact_enough_is_taken(nfe: int) -> None:
    teacher = toy_mixture()
    choice, images = choose(teacher, nfe)
    assert choice.error is not None and choice.expected is not None
    assert choice.error <= 0.1 * choice.expected
    assert choice.error / 2.5 <= error_of(choice.reference, teacher) <= 2.5 * choice.error
    assert images == choice.evaluations <= 0.03 * LARGE
    fewer = replace(choice.reference, steps=choice.reference.steps // 2)
    assert error_of(fewer, teacher, choice.samples) > 0.1 * choice.expected


def test_a_network_that_is_rough_in_time_gets_a_reference_that_is_right() -> None:
    teacher, span = rough(), 2.0
    choice, images = choose(teacher)
    assert error_of(Reference(), teacher) > 0.04 * span  # what was the default
    assert error_of(choice.reference, teacher) < 0.002 * span
    assert choice.reference.steps > 40 and images <= 0.03 * LARGE
    assert choice.falls is not None and "; rough in time: twice the steps divide the error by" in choice.summary()
    assert "wrong unseen" in choice.summary() and "rough" not in choose(toy_mixture())[0].summary()


def test_solves_that_agree_on_a_wrong_result_are_contradicted() -> None:
    """Steps of an even grid that hold a whole number of cycles see a constant; another grid does not."""

    class Aliased(Rough):
        def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            time = (sigma / (alpha + sigma)).double()[:, None]
            ripple = 0.5 * torch.cos(2 * math.pi * 80 * (0.999 - time) / 0.998)
            return Mixture.forward(self, x, alpha, sigma, cond) + (time * ripple).to(x.dtype)

    toy = toy_mixture()
    teacher = Aliased(toy.means, toy.weights, toy.stds, path=Flow(), noise_range=(0.999, 0.001))
    noise, _ = seeded_noise(range(4), teacher)
    first, second = (Reference(steps=n, grid="time_uniform").solve(teacher, teacher, noise).end() for n in (20, 40))
    true = error_of(Reference(steps=40, grid="time_uniform"), teacher, 4)
    assert distance(first, second) < 0.2 * true  # doubling alone would have believed it
    choice, _ = choose(teacher)
    assert choice.error is not None and error_of(choice.reference, teacher, 4) < 2 * choice.error


@pytest.mark.parametrize("size", [3_000, 9_000, 29_000, 30_000, 100_000])
def test_choosing_keeps_to_its_share(size: int) -> None:
    for teacher in (toy_mixture(), rough()):
        choice, images = choose(teacher, size=size)
        assert 0 < images <= (0.03 if size >= 30_000 else 0.1) * size
        assert choice.error is not None and math.isfinite(choice.error)


def test_a_small_run_takes_the_rule_and_says_so() -> None:
    choice, images = choose(toy_mixture(), size=2_999)
    assert choice.reference == Reference() and choice.error is None and images == 0 and choice.facts == {}
    assert choice.summary() == "reference ipndm, 40 steps on the polynomial grid; reference error not measured"
    assert choose(toy_mixture(), measure=())[0] == Choice(Reference())
    assert [allowed(size) for size in (2_999, 3_000, 29_999, 30_000)] == [0, 300, 2_999, 900]


def test_what_is_given_is_kept() -> None:
    steps, _ = choose(toy_mixture(), reference=Reference(steps=24), measure=("grid",))
    assert steps.reference.steps == 24 and steps.error is not None
    others = [error_of(Reference(steps=24, grid=grid, rho=rho), toy_mixture()) for grid, rho in choosing_grids()]
    assert error_of(steps.reference, toy_mixture()) <= 1.2 * min(others)
    grid, _ = choose(toy_mixture(), reference=Reference(grid="polynomial", rho=5.0), measure=("steps",))
    assert (grid.reference.grid, grid.reference.rho) == ("polynomial", 5.0) and grid.error is not None
    heun, _ = choose(toy_mixture(), reference=Reference("heun"))
    assert heun.reference.solver == "heun" and heun.error is not None


def choosing_grids() -> list[tuple[str, float | None]]:
    return [("polynomial", 7.0), ("logsnr", None), ("time_uniform", 1.0)]


def test_the_choice_is_remembered_and_another_student_measures_little(tmp_path: Path) -> None:
    first, images = choose(toy_mixture(), cache=tmp_path)
    again, none = choose(toy_mixture(), cache=tmp_path)
    fresh, same = choose(toy_mixture())
    assert replace(first, evaluations=0) == again == replace(fresh, evaluations=0) and none == 0 and same == images
    _, more = choose(toy_mixture(), nfe=5, cache=tmp_path)
    assert 0 < more < images / 2
    assert choose(toy_mixture(seed=1), cache=tmp_path)[1] > 0  # another teacher
    damaged = next(tmp_path.glob("mixture-candidates-*/shard-*"))
    damaged.write_bytes(b"cut off")
    assert replace(choose(toy_mixture(), cache=tmp_path)[0], evaluations=0) == again


def test_the_choice_of_the_first_process_holds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []

    def choose_as(rank: int, teacher: Mixture) -> Choice:
        def total(value: Tensor) -> Tensor:
            sent.append(value)
            return sent[0] + (0 if rank == 0 else value)

        monkeypatch.setattr(choosing, "processes", lambda: (rank, 2))
        monkeypatch.setattr(choosing, "total", total)
        return replace(choose(teacher)[0], evaluations=0)

    first, second = choose_as(0, toy_mixture()), choose_as(1, toy_mixture(seed=1))
    assert first == second and bool((sent[1] == 0).all())


def test_settings_that_are_open_and_mistakes() -> None:
    auto = {"reference": {"solver": "ipndm", "grid": None, "steps": None, "rho": None, "nested": None}}
    assert make_target_settings(auto) == settings()
    nested = {"reference": {**auto["reference"], "solver": "heun", "nested": 3}}
    assert (
        make_target_settings(nested).measure == () == make_target_settings({"reference": {"solver": "dopri5"}}).measure
    )
    assert make_target_settings({"reference": {**auto["reference"], "steps": 30}}).measure == ("grid",)
    with pytest.raises(ValueError, match=r"targets.reference.rho=5 is that of no grid; set targets.reference.grid"):
        make_target_settings({"reference": {**auto["reference"], "rho": 5}})
    with pytest.raises(TypeError, match="steps of Reference must be an integer, not 'many'"):
        make_target_settings({"reference": {**auto["reference"], "steps": "many"}})
    with pytest.raises(ValueError, match="grid kind 'even' is unknown"):
        choose(toy_mixture(), reference=Reference(grid="even"), measure=("steps",))


def test_a_student_near_the_reference_error_is_marked(tmp_path: Path) -> None:
    teacher = toy_mixture()
    program = build("ipndm", Grid(steps=4)).program()
    test = make_targets(settings(test_samples=8, measure=()), "test", teacher, teacher)
    plain = compare_with_classical("ours", program, teacher, teacher, test)
    assert "reference: its error was not measured" in repr(plain).replace("\n", " ")
    rmse = plain[0].rmse_mean
    for error, marked in ((rmse / 2.9, True), (rmse / 3.1, False)):
        found = compare_with_classical("ours", program, teacher, teacher, test, reference_error=error)
        assert found[0].coarse is marked and not any(row.coarse for row in found[1:])
        assert {row.reference_error for row in found} == {error}
        page = write_markdown(tmp_path / "table.md", found.layout, found.names, "title", "").read_text("utf-8")
        for text in (repr(found), html_table(found.layout, found.names), page):
            assert ("(measured too coarsely)" in " ".join(text.split())) is marked
        assert ("too near to that of ours" in found.layout.yardstick) is marked


def test_a_run_measures_and_its_file_says_so() -> None:
    targets = {"train_samples": 32, "validation_samples": 8, "test_samples": 8, "cache": None}
    fit = {"gauss_newton": {"iterations": 8, "samples": 32}}
    done = sd.distill("mixture", "corrected", 4, fit=fit, targets=targets)
    assert done.run.size() > 3_000
    reference, choice = done.provenance["reference"], done.data.choice
    assert choice.error is not None and reference["error"] == float(f"{choice.error:.3g}")
    assert reference["error_samples"] == choice.samples and reference["steps"] == choice.reference.steps
    assert done.reports[0].evaluations == 128 * (choice.reference.steps + 1) + choice.evaluations
    assert done.reports[0].note == choice.summary()
    assert {row.reference_error for row in done.compare()} == {choice.error}


def test_an_evaluation_measures_and_its_report_says_so(tmp_path: Path) -> None:
    plan = EvaluationPlan(baselines=["ipndm"], nfe=[6], samples=64, extractor=None)
    found = evaluate(plan, toy_mixture(), settings(tmp_path / "targets"))
    errors = {one.row.reference_error for one in found.measured}
    assert len(errors) == 1 and None not in errors
    assert "from the exact solution, on" in found.facts["reference"]
    first = replace(found.measured[0].row, kind="student", rmse_mean=2 * max(error for error in errors if error))
    publish(replace(found, measured=[replace(found.measured[0], row=first), *found.measured[1:]]), tmp_path, "title")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "(measured too coarsely)" in page and "too near to that of" in page
    assert "reference_error" in (tmp_path / "metrics.csv").read_text("utf-8").splitlines()[0]
