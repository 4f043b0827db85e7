"""Several processes: the result does not depend on their number.

Most of the time of a small run goes into starting its processes, so torchrun starts two of them once, for all that are
compared with a run of one process; that one is this process.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from solverdistill import Grid, families, read_solver, save_solver
from tests.commands import run_alone, run_here

STEPS = 24  # three epochs
CPU = ["trainer.accelerator=cpu", "trainer.precision=64-true", "trainer.enable_progress_bar=false"]
TINY = [*CPU, "logger=csv", "evaluation=off", "targets.train_samples=64", "targets.validation_samples=8"]
TWO = ["trainer=ddp", "trainer.devices=2"]


def steps(fit: str, count: int) -> list[str]:
    """Overrides for steps of gradient descent, in one of its forms."""
    settings = (f"iterations={count}", "batch_size=8", "validations=1")
    return [f"fit={fit}", *(f"fit.{fit}.{setting}" for setting in settings)]


def direct(rows: str, jacobian: str) -> list[str]:
    """Overrides for fits without an optimizer."""
    settings = ["iterations=3", "samples=16", "batch_size=4", "directions=4", f"jacobian={jacobian}"]
    return [f"fit=[race,{rows},gauss_newton]", *(f"fit.gauss_newton.{setting}" for setting in settings)]


GAS = ["model=digits_kde", "solver=gas", "solver.nfe=4", "objective=endpoint"]
DESCENTS = {name: [*GAS, *steps(name, STEPS)] for name in ("gradient", "adversarial", "relaxed")}
DIRECT = {
    "corrected-exact": ["model=digits_kde", "solver=corrected", "solver.nfe=5", *direct("least_squares", "exact")],
    "epd-sketch": ["model=digits_kde", "solver=epd", "solver.nfe=5", *direct("point_search", "sketch")],
}


def solver_of(home: Path) -> str:
    """A solver file to evaluate."""
    family = families.build("epd", Grid(steps=3), afs=True)
    return str(save_solver(home / "solver.json", family.program(family.init(0)), family.hyperparameters()))


def evaluation(home: Path) -> list[str]:
    solvers = [f"solvers=[{solver_of(home)}]", "baselines=[dpmpp]", "nfe=[3]"]
    return ["model=digits_kde", *solvers, "samples=60", "batch_size=16", "targets.reference.steps=10", "grid_samples=2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where two processes have run every command; what they printed is in two.txt."""
    home = tmp_path_factory.mktemp("processes")
    jobs = [["scripts/evaluate.py", *evaluation(home), f"hydra.run.dir={home}/evaluated2/${{now:%f}}"]]
    for name, settings in {**DESCENTS, **DIRECT}.items():
        jobs.append(["train.py", *settings, *TINY, *TWO, f"hydra.run.dir={home}/{name}2"])
    (home / "jobs.json").write_text(json.dumps(jobs))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29731")
    ran = run_alone(home, "tests/commands_in_turn.py", str(home), f"{home}/jobs.json", launcher=launcher)
    assert ran.returncode == 0, ran.stderr
    (home / "two.txt").write_text(ran.stdout)
    return home


def alone(home: Path, name: str, settings: list[str]) -> Path:
    """Run a training in this process; its folder."""
    ran = run_here(home, "train.py", *settings, *TINY, f"hydra.run.dir={home}/{name}1")
    assert ran.returncode == 0, ran.stderr
    return home / f"{name}1"


def params(folder: Path) -> dict[str, torch.Tensor]:
    return read_solver(folder / "solver-last.json").params


def spent(folder: Path) -> list[tuple[str, int]]:
    """Evaluations so far, at every report of a fit without an optimizer."""
    with open(folder / "fits.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    return [(line["fit"], int(line["evaluations"])) for line in lines if line["fit"] != "gradient"]


@pytest.mark.slow
@pytest.mark.parametrize("fit", DESCENTS)
def test_one_and_two_processes_end_at_the_same_params(fit: str, home: Path) -> None:
    one, two = params(alone(home, fit, DESCENTS[fit])), params(home / f"{fit}2")
    moved = {name: value for name, value in one.items() if float(value.abs().max()) > 0}
    assert len(moved) > 5  # the corrections, zero at the beginning, have moved
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("student", DIRECT)
def test_direct_fits_share_their_work_and_end_at_the_same_params(student: str, home: Path) -> None:
    one, two = alone(home, student, DIRECT[student]), home / f"{student}2"
    assert spent(two) == spent(one) and spent(one)[-1][1] > 0
    assert any(float(value.abs().max()) > 1e-3 for value in params(one).values())
    for name, value in params(one).items():
        torch.testing.assert_close(params(two)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_processes_that_the_command_starts_share_the_cache_and_end_as_one_does(tmp_path: Path) -> None:
    """Lightning starts the second process with the same command, before the fits that both take part in."""
    fits = direct("least_squares", "sketch")
    fits[0] = "fit=[race,least_squares,gauss_newton,gradient]"
    settings = ["model=mixture", "solver=corrected", "solver.nfe=4", *fits, *steps("gradient", 4)[1:]]
    settings += [*TINY, "targets.train_samples=200"]
    two = run_alone(tmp_path, "train.py", *settings, *TWO, f"hydra.run.dir={tmp_path}/two")
    assert two.returncode == 0, two.stderr
    one = run_here(tmp_path, "train.py", *settings, f"hydra.run.dir={tmp_path}/one")
    assert one.returncode == 0, one.stderr
    assert "200 of 200 reference trajectories (train) from the cache" in one.stdout + one.stderr
    assert spent(tmp_path / "two") == spent(tmp_path / "one") and spent(tmp_path / "one")[-1][1] > 0
    for name, value in params(tmp_path / "one").items():
        torch.testing.assert_close(params(tmp_path / "two")[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_and_two_processes_evaluate_to_the_same_numbers(home: Path) -> None:
    ran = run_here(home, "scripts/evaluate.py", *evaluation(home), f"hydra.run.dir={home}/evaluated1/once")
    assert ran.returncode == 0, ran.stderr
    rows = []
    for processes, printed in ((1, ran.stdout), (2, (home / "two.txt").read_text())):
        (folder,) = (home / f"evaluated{processes}").iterdir()
        assert {"report.html", "metrics.csv", "metrics.md", "figures"} <= {path.name for path in folder.iterdir()}
        with open(folder / "metrics.csv", newline="") as stream:
            rows.append(list(csv.DictReader(stream)))
        assert printed.count("FD(digits classifier)") == 1
    for one, two in zip(*rows, strict=True):
        for name in set(one) - {"label", "kind", "seconds"}:
            assert (one[name] == two[name]) or float(one[name]) == pytest.approx(float(two[name]), rel=1e-6), name
    assert len(rows[0]) == 7


def test_a_sweep_of_subprocesses_is_refused(tmp_path: Path) -> None:
    where = [f"hydra.sweep.dir={tmp_path}/sweep", *TWO, *steps("gradient", 2)]
    ran = run_here(tmp_path, "train.py", "-m", "solver=epd,gas", "model=mixture", *TINY, *where)
    assert ran.returncode == 2
    assert ran.stderr.strip().split("\n")[-1].startswith("error: a sweep (-m) with trainer=ddp would rerun")
