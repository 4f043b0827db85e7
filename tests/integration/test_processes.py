"""Several processes: the result does not depend on their number, and only one folder and one file come out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
STEPS = 50
TINY = [
    "trainer.accelerator=cpu",
    "trainer.precision=64-true",
    "trainer.enable_progress_bar=false",
    "logger=csv",
    "evaluation=off",
    "objective=endpoint",
    "targets.train_samples=64",
    "targets.validation_samples=8",
]


def steps(fit: str, count: int) -> list[str]:
    """Overrides for steps of gradient descent, in one of its forms."""
    settings = (f"iterations={count}", "batch_size=8", "validations=1")
    return [f"fit={fit}", *(f"fit.{fit}.{setting}" for setting in settings)]


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SOLVERDISTILL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, env=environment)


def params(folder: Path) -> dict[str, torch.Tensor]:
    family = json.loads((folder / "solver-last.json").read_text())["family"]
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in family["params"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["gradient", "adversarial", "relaxed"])
def test_one_and_two_processes_end_at_the_same_params(fit: str, tmp_path: Path) -> None:
    ends = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        where = [f"hydra.run.dir={folder}", "trainer=ddp", f"trainer.devices={processes}"]
        student = ["model=digits_kde", "solver=gas", "solver.nfe=4", *steps(fit, STEPS)]
        result = run(tmp_path / "home", *student, *TINY, *where)
        assert result.returncode == 0, result.stderr
        ends.append(params(folder))
    start = {name: value for name, value in ends[0].items() if float(value.abs().max()) > 0}
    assert len(start) > 5  # the corrections, zero at the beginning, have moved
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "jacobian"), [("corrected", "sketch"), ("corrected", "exact"), ("epd", "sketch")])
def test_direct_fits_share_their_work_and_end_at_the_same_params(solver: str, jacobian: str, tmp_path: Path) -> None:
    settings = ["iterations=3", "samples=16", "batch_size=4", "directions=4", f"jacobian={jacobian}"]
    rows = "point_search" if solver == "epd" else "least_squares"
    fit = [f"fit=[race,{rows},gauss_newton]", *(f"fit.gauss_newton.{setting}" for setting in settings)]
    ends, spent = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        where = [f"hydra.run.dir={folder}", "trainer=ddp", f"trainer.devices={processes}", *fit]
        tiny = [setting for setting in TINY if not setting.startswith("objective")]
        result = run(tmp_path / "home", "model=digits_kde", f"solver={solver}", "solver.nfe=5", *tiny, *where)
        assert result.returncode == 0, result.stderr
        ends.append(params(folder))
        spent.append(int((folder / "fits.csv").read_text().split("\n")[-2].split(",")[2]))
    assert spent[1] == spent[0] > 0
    assert any(float(value.abs().max()) > 1e-3 for value in ends[0].values())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_sweep_of_subprocesses_is_refused(tmp_path: Path) -> None:
    where = [f"hydra.sweep.dir={tmp_path}/sweep", "trainer=ddp", "trainer.devices=2", *steps("gradient", 2)]
    result = run(tmp_path / "home", "-m", "solver=epd,gas", "model=mixture", *TINY, *where)
    assert result.returncode == 2
    assert result.stderr.strip().split("\n")[-1].startswith("error: a sweep (-m) with trainer=ddp would rerun")
