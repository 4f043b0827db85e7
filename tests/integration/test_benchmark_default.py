"""The benchmark of the default run on a few samples: exact end points, restarts, recipes within a budget, the page."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import solverdistill
from scripts.benchmarks import default, default_report, exact, floor, published, restarts
from scripts.benchmarks.default import AUTO, CLASSICALS, Asked, Line
from scripts.benchmarks.exact import Bench, Solve
from scripts.benchmarks.floor import Restart
from scripts.benchmarks.ground import SAMPLES, Cell, Ground, Samples
from scripts.benchmarks.kept import Kept
from scripts.benchmarks.teachers import load, parse_weights
from solverdistill.training.configuration import Run

CELL = Cell("digits", "table", "nfe", 3)
LINE = Line("digits", AUTO, 4, 0, None, "corrected", 0.021, 0.02, 0.001, 100, 20, 3, 5.0)
RESTART = Restart("digits", "table", "nfe", 4, 0, 4, "fitted gas", 0.02, 0.019, 1000, 9.0)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes, and the threads of the suite."""
    monkeypatch.setitem(exact.SOLVES, "digits", Solve(6, "polynomial", 20))
    monkeypatch.setitem(SAMPLES, "digits", Samples(12, 6, 12))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def ground_in(folder: Path) -> Ground:
    return Ground(Bench.of("digits", {}, folder), SAMPLES["digits"])


def never(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("this was done before")


def test_exact_end_points_are_those_of_the_solve_and_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench.of("digits", {}, tmp_path)
    with torch.no_grad():
        found = bench.solve.reference.solve(bench.teacher, bench.denoiser, bench.test.noise, bench.test.cond).end()
    torch.testing.assert_close(bench.test.end, found.float(), rtol=0, atol=1e-4)
    monkeypatch.setattr(Bench, "_solved", never)
    again = Bench.of("digits", {}, tmp_path)
    assert torch.equal(again.test.end, bench.test.end) and torch.equal(again.test.cond, bench.test.cond)
    assert 1e-4 < again.off < 0.1  # 20 steps against 10


def test_a_restart_ends_below_its_start_and_its_file_has_what_it_says(tmp_path: Path) -> None:
    ground = ground_in(tmp_path)
    start = restarts.begin(ground, CELL, 4)
    row = floor.measure(ground, CELL, 4, 300)
    file = tmp_path / "floor" / "digits-table-nfe3-04.json"
    assert row.nfe == 3 and row.rmse == pytest.approx(ground.bench.error(solverdistill.load_solver(file)), rel=1e-5)
    assert row.held_out < ground.error(start)
    file.rename(file.with_name("digits-table-nfe3-00.json"))
    file.with_name("digits-table-nfe3-01.json").symlink_to("digits-table-nfe3-00.json")
    file.with_name("digits-table-nfe3-02.json").symlink_to("digits-table-nfe3-00.json")
    shaken = restarts.begin(ground, CELL, 8)
    assert shaken.label.startswith("restart ") and shaken.family == start.family
    assert row.held_out < ground.error(shaken) < float("inf")
    assert start.label == row.start and start.evaluations < row.evaluations < 1000


def test_a_restart_that_ends_far_above_the_others_is_left_alone(tmp_path: Path) -> None:
    ground = ground_in(tmp_path)
    start = restarts.begin(ground, CELL, 4)
    quick, whole = (restarts.descend(ground, start, 4, 2_000, best) for best in (1e-9, 1.0))
    assert quick.rounds == 1 and whole.rounds > 1 and whole.held_out <= quick.held_out < ground.error(start)
    assert quick.held_out == pytest.approx(ground.error(start._replace(params=quick.params)))


def test_rows_outlive_a_process_killed_in_the_middle_of_a_line(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "rows.jsonl", Restart)
    kept.add(RESTART)
    with open(kept.path, "a", encoding="utf-8") as stream:
        stream.write('{"teacher": "dig')
    again = Kept(kept.path, Restart)
    again.add(replace(RESTART, number=1))
    assert Kept(kept.path, Restart).rows == [RESTART, replace(RESTART, number=1)]


def test_restarts_begin_alike_for_their_number_and_else_apart(tmp_path: Path) -> None:
    ground = ground_in(tmp_path)
    for cell in (CELL, Cell("digits", "epd", "depth", 2), Cell("digits", "epd_ipndm", "depth", 3)):
        starts = [restarts.begin(ground, cell, number) for number in (3, 3, 7)]
        tables = [start.family.program(start.params).detach() for start in starts]
        assert torch.equal(tables[0].B, tables[1].B) and tables[0].B.shape == tables[2].B.shape
        assert not torch.allclose(tables[0].B, tables[2].B)
        assert getattr(starts[0].family, cell.cost) == cell.wanted


def test_a_killed_floor_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [(CELL, 3, 50), (CELL, 4, 50)]
    monkeypatch.setattr(floor, "plan", lambda: iter(jobs[:1]))
    floor.run(tmp_path, {}, ["digits"], ["table"], 30)
    monkeypatch.setattr(floor, "plan", lambda: iter(jobs))
    floor.run(tmp_path, {}, ["digits"], ["table"], 30)
    assert [row.number for row in Kept(tmp_path / "floor.jsonl", Restart).rows] == [3, 4]
    monkeypatch.setattr(floor, "measure", never)
    floor.run(tmp_path, {}, ["digits"], ["table"], 30)


def test_restarts_are_planned_breadth_first() -> None:
    jobs = list(floor.plan())
    counts = Counter(cell for cell, _, _ in jobs)
    assert len({(cell, number) for cell, number, _ in jobs}) == len(jobs)
    assert {counts[Cell(name, "table", "nfe", nfe)] for name in ("digits", "emnist") for nfe in (4, 5, 6, 8)} == {30}
    assert {counts[Cell(name, "table", "nfe", nfe)] for name in ("mnist", "emoji32") for nfe in (4, 6)} == {8}
    assert {most for cell, _, most in jobs if cell.teacher in ("mnist", "emoji32")} == {60_000}
    first = [(cell.teacher, cell.wanted, number) for cell, number, _ in jobs[:8]]
    assert first == [(name, nfe, number) for number in (0, 1) for name in ("digits", "emnist") for nfe in (4, 6)]


def test_the_floor_is_chosen_by_held_out_errors() -> None:
    rows = [RESTART, replace(RESTART, number=1, rmse=0.018, held_out=0.03), replace(RESTART, wanted=6, held_out=0.9)]
    assert floor.floors(rows) == {RESTART.cell: rows[0], rows[2].cell: rows[2]}


@pytest.mark.parametrize("recipe", list(published.RECIPES))
@pytest.mark.parametrize("budget", [1_000, 30_000])
def test_recipes_take_what_a_budget_allows(recipe: str, budget: int, tmp_path: Path) -> None:
    bench = Bench.of("digits", {}, tmp_path)
    whole = Run.of(published.configure(bench, published.RECIPES[recipe], 4, 0), bench.teacher)
    cut = published.cut(whole, budget)
    (fit,) = cut.fits.values()
    each = cut.targets.reference.evaluations(bench.teacher.path, bench.teacher.noise_range)
    taken = each * (cut.targets.train_samples + cut.targets.validation_samples) + fit.expected(published.plan_of(cut))
    assert taken <= budget and (taken > 0.7 * budget or fit.iterations == next(iter(whole.fits.values())).iterations)
    (own,) = published.cut(whole, 10**9).fits.values()
    assert own == next(iter(whole.fits.values()))


def test_a_recipe_is_measured_with_all_that_it_took(tmp_path: Path) -> None:
    bench = Bench.of("digits", {}, tmp_path)
    (line,) = default.measure(bench, Asked("digits", "LD3's recipe", 3, 0, 1_000))
    assert line.solver == "ld3" and line.asked == Asked("digits", "LD3's recipe", 3, 0, 1_000)
    assert 0 < line.rmse < 1 and line.teacher_evaluations > 0 and 700 < line.evaluations <= 1_000


def test_runs_of_the_product_are_measured_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def small(*arguments: Any, **options: Any) -> Any:
        given.append({**options, "solver": arguments[1]})
        options.pop("budget", None)
        sizes = {"train_samples": 12, "validation_samples": 6, "reference": {"grid": "polynomial", "steps": 10}}
        options["targets"] = {**options["targets"], **sizes}
        race = {"first": 2, "survivors": 1, "gits": False, "lower_starts": False}
        return solverdistill.distill(*arguments, **options, fit={"race": race})

    monkeypatch.setattr(default, "distill", small)
    bench = Bench.of("digits", {}, tmp_path)
    (line,) = default.measure(bench, Asked("digits", "epd", 5, 0, 1_000))
    assert line.solver == "epd" and line.rmse != line.held_out and line.teacher_evaluations >= 18 * 10
    assert given[0]["budget"] == "1000evals" and given[0]["solver"]["afs"] and given[0]["targets"]["cache"] is None
    wanted = ["--out", str(tmp_path), "--teachers", "digits", "--nfe", "2", "--seeds", "1", "--solvers", "corrected"]
    arguments = default.parse([*wanted, "--parts", "default", "classical"])
    default.run(arguments, {})
    lines = Kept(tmp_path / "default.jsonl", Line).rows
    assert [line.method for line in lines] == [*CLASSICALS, "corrected"] and "budget" not in given[1]
    assert max(lines[1].rmse, lines[2].rmse) < lines[0].rmse  # from lower, and fitted
    monkeypatch.setattr(default, "measure", never)
    default.run(arguments, {})


def test_the_plan_of_the_default_has_what_the_page_promises() -> None:
    asked = list(default.plan(default.parse(["--out", "."])))
    counts = Counter((one.teacher, one.method, one.nfe) for one in asked if one.budget is None)
    assert counts["digits", AUTO, 10] == 5 and counts["mnist", AUTO, 8] == 3 and counts["emoji32", AUTO, 6] == 2
    assert counts["emnist", "gas", 4] == 2 and counts["digits", CLASSICALS[1], 5] == 1
    budgets = {(one.teacher, one.method): 0 for one in asked if one.budget is not None}
    assert ("digits", "GS's recipe") in budgets and ("mnist", "GS's recipe") not in budgets
    assert max(one.budget or 0 for one in asked if one.teacher == "emoji32") == 30_000
    own = [one.seed for one in asked if one.budget is None and one.method == AUTO]
    assert own == sorted(own) and len(set(asked)) == len(asked)


def test_what_a_version_has_not_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(default, "distill", lambda teacher: SimpleNamespace())
    arguments = default.possible(default.parse(["--out", ".", "--solvers", "gas", "nothing"]))
    assert arguments.solvers == ["gas"] and "nothing" in capsys.readouterr().out
    assert {one.method for one in default.plan(arguments) if one.budget is not None} == set(published.RECIPES)


def test_the_page_has_tables_ratios_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [LINE, replace(LINE, seed=1, rmse=0.022), replace(LINE, method="gas", solver="gas", rmse=0.03)]
    lines += [replace(LINE, method=CLASSICALS[1], solver="iPNDM-3 from 18", rmse=0.05)]
    lines += [replace(LINE, budget=budget, rmse=30 / budget) for budget in (1_000, 3_000)]
    lines += [replace(LINE, method="epd", nfe=3, rmse=0.11)]
    rows = [RESTART, replace(RESTART, number=1, rmse=0.0203, held_out=0.03), replace(RESTART, number=2, held_out=0.1)]
    rows += [replace(RESTART, family="epd", cost="depth", wanted=2, nfe=3, rmse=0.1)]
    for kind, values in ((Line, lines), (Restart, rows)):
        kept = Kept[Any](tmp_path / f"{'default' if kind is Line else 'floor'}.jsonl", kind)
        for value in values:
            kept.add(value)
    out = tmp_path / "page" / "default.md"
    out.parent.mkdir()
    monkeypatch.setattr("sys.argv", ["report", "--records", str(tmp_path), "--out", str(out)])
    default_report.main()
    page = out.read_text(encoding="utf-8")
    assert (
        "| 4 | **auto** (corrected) | 2 | 0.0215 | 4.7% | 123 | 5 | 0.0200 | +7.5% | 0.0500, iPNDM-3 from 18 |" in page
    )
    assert "| digits | 4 | 3 | 0.0200 | 2 | 0.0200 | 0.0203 | fitted gas |" in page
    assert "| digits | epd | 2 | 3 | 0.1100 | 0.1000 | +10.0% | 1 | 0 | fitted gas |" in page
    assert "| digits | 4 | 1,000 | 0.0300 | 0.0215 | 0.0500 |" in page
    assert "| default runs | digits | 3 | 55 |" in page and "| restarts of table | emoji32 | 0 | 16 |" in page
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert (out.parent / "floor.jsonl").read_text() == (tmp_path / "floor.jsonl").read_text()


def test_teachers_and_their_files_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="mnist are not shipped"):
        load("mnist", {})
    with pytest.raises(ValueError, match="'nothing' is unknown; known: digits"):
        load("nothing", {})
    with pytest.raises(ValueError, match="--weights takes mnist=FILE"):
        parse_weights(["digits=x"])
    assert parse_weights(["mnist=a=b"]) == {"mnist": "a=b"}
