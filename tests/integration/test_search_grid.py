"""scripts/search_grid.py as users run it: what it prints is a grid that train.py takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from solverdistill.denoisers.guidance import make_guided
from solverdistill.fits.grid_search.search import search_grid
from solverdistill.references.solving import Reference
from solverdistill.teachers.digits import digits_kde
from solverdistill.teachers.mixture import toy_mixture
from tests.commands import run_alone, run_here

SCRIPT = "scripts/search_grid.py"
FEW = ["model=mixture", "trainer=cpu"]
SEARCH = [*FEW, "+search.steps=3", "+search.samples=6", "+search.reference.steps=15"]


@pytest.mark.parametrize("method", ["gits", "oss"])
def test_printed_list_is_the_grid(tmp_path: Path, method: str) -> None:
    run = run_alone if method == "gits" else run_here
    result = run(tmp_path, SCRIPT, *SEARCH, f"+search.method={method}")
    assert result.returncode == 0, result.stderr
    found = search_grid(method, toy_mixture(), toy_mixture(), 3, reference=Reference(steps=15), samples=6)
    printed = result.stdout.strip()
    assert printed == f"[{','.join(map(repr, found.levels))}]"
    assert result.stderr.strip().splitlines()[-1].endswith(f"{found.evaluations} evaluations of the teacher")
    assert not any(tmp_path.iterdir())
    if method == "gits":
        tiny = ["logger=csv", "evaluation=off", "fit=gradient"]
        tiny += [f"fit.gradient.{setting}" for setting in ("iterations=1", "batch_size=2", "validations=1")]
        tiny += [f"targets.{split}_samples=2" for split in ("train", "validation", "test")]
        tiny += ["output_dir=run", "trainer.enable_progress_bar=false"]
        listed = ["solver=dss", "solver.nfe=3", "~solver.grid", f"+solver.grid={printed}"]
        trained = run_here(tmp_path, "train.py", *FEW, *tiny, *listed)
        assert trained.returncode == 0, trained.stderr
        assert (tmp_path / "run" / "solver.json").is_file()


def test_guidance_is_that_of_training(tmp_path: Path) -> None:
    rule = {"scale": 3.0, "interval": [10.0, 0.1]}
    chosen = ["model=digits_kde", f"guidance={rule}".replace("'", ""), "+search.method=gits"]
    result = run_here(tmp_path, SCRIPT, *SEARCH, *chosen)
    assert result.returncode == 0, result.stderr
    teacher, guided = make_guided(digits_kde(0.15), rule)
    found = search_grid("gits", teacher, guided, 3, reference=Reference(steps=15), samples=6)
    assert result.stdout.strip() == f"[{','.join(map(repr, found.levels))}]"


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    result = run_here(tmp_path, SCRIPT, *SEARCH, "+search.method=oss", "+search.gamma=1.1")
    assert result.returncode == 2
    assert result.stderr.strip() == "error: search method 'oss' has no setting 'gamma'; it has: combine"
    assert result.stdout == ""
