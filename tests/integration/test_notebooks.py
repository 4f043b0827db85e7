"""The notebooks run, what they claim holds, and they are committed as a reader should see them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = ("distil_the_digits", "your_own_network", "solver_json_to_diffusers")


def cells(name: str) -> Iterator[dict[str, Any]]:
    """Cells of code."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return (cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def execute(name: str) -> dict[str, Any]:
    """Run a notebook in this process; the value that ends a cell is shown as a notebook shows it.

    Returns:
        What it defined.
    """
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {"__name__": name}
    for cell in cells(name):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            assert getattr(value, "_repr_html_", value.__repr__)()
    plt.close("all")
    return names


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distil_the_digits", "your_own_network"])
def test_a_distilled_solver_beats_the_classical_ones(name: str, folder: Path) -> None:
    names = execute(name)
    student, *others = names["comparison"]
    equal = [row for row in others if row.kind == "classical" and row.nfe == student.nfe]
    assert len(equal) > 5 and student.rmse_mean < 0.8 * min(row.rmse_mean for row in equal)
    assert not (folder / "home").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # of diffusers
def test_the_pipeline_draws_what_it_draws_with_a_hundred_calls() -> None:
    names = execute("solver_json_to_diffusers")
    errors = names["errors"]
    assert errors["fitted, 6 calls"] < 0.8 * min(errors["DDIM, 6 calls"], errors["DPM-Solver++, 6 calls"])
    assert names["again"].nfe == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_as_it_ran(name: str) -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 400_000
    shown = [output for cell in cells(name) for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells(name)] == list(range(1, len(list(cells(name))) + 1))
    assert shown and all(output["output_type"] != "error" for output in shown)
    assert not any(output.get("name") == "stderr" for output in shown)
    assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps(shown))
