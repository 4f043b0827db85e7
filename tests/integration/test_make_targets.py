"""scripts/make_targets.py as users run it: killed, resumed, shared with train.py, and clear about mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from solverdistill import read_solver
from solverdistill.denoisers.guidance import make_guided
from solverdistill.denoisers.wrappers import Counted
from solverdistill.references.solving import Reference
from solverdistill.references.targets import CHUNK, TargetSettings, make_targets
from solverdistill.teachers.digits import digits_kde
from solverdistill.teachers.mixture import toy_mixture

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "make_targets.py")
FEW = ["targets.validation_samples=3", "targets.test_samples=5", "trainer=cpu", "model=mixture"]


def environment(home: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "SOLVERDISTILL_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(home: Path, *overrides: str) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, SCRIPT, *FEW, *overrides], subprocess.PIPE
    return subprocess.Popen(command, env=environment(home), cwd=home, stdout=pipe, stderr=pipe, text=True)


def shards(home: Path) -> dict[str, int]:
    """Time of writing of every finished training shard."""
    return {path.name: path.stat().st_mtime_ns for path in home.glob("targets/mixture-train-*/shard-*.safetensors")}


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    chunks = 300
    run = start(tmp_path, f"targets.train_samples={chunks * CHUNK}")
    deadline = time.monotonic() + 120
    while len(shards(tmp_path)) < 3 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    run.kill()
    run.communicate()
    before = shards(tmp_path)
    assert 3 <= len(before) < chunks

    wanted = len(before) + 4
    run = start(tmp_path, f"targets.train_samples={(wanted - 1) * CHUNK + 1}")
    output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    after = shards(tmp_path)
    assert len(after) == wanted
    assert len([name for name in before if after[name] == before[name]]) >= len(before) - 1
    hits = re.search(r"(\d+) of \d+ reference trajectories \(train\) from the cache", output + errors)
    assert hits is not None and int(hits.group(1)) >= (len(before) - 1) * CHUNK
    assert re.search(rf"train: {(wanted - 1) * CHUNK + 1} reference trajectories; [\d.]+ MB in {tmp_path}", output)
    assert {path.name for path in tmp_path.iterdir()} == {"targets"}

    options = {"train_samples": wanted * CHUNK, "reference": Reference(rho=7.0)}
    teacher = toy_mixture()
    cached = make_targets(TargetSettings(cache=str(tmp_path / "targets"), **options), "train", teacher, teacher)
    solved = make_targets(TargetSettings(**options), "train", teacher, teacher)
    assert torch.equal(cached.batch.end, solved.batch.end) and torch.equal(cached.batch.noise, solved.batch.noise)
    assert shards(tmp_path) == after


@pytest.mark.slow
def test_a_rule_of_guidance_and_smaller_chunks(tmp_path: Path) -> None:
    rule = {"scale": 3.0, "interval": [10.0, 0.1]}
    chosen = ["model=digits_kde", f"guidance={rule}".replace("'", ""), "targets.train_samples=3", "targets.chunk=2"]
    run = start(tmp_path, *chosen, "targets.reference.steps=4")
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    teacher, guided = make_guided(digits_kde(0.15), rule)
    settings = TargetSettings(Reference(steps=4, rho=7.0), 3, cache=str(tmp_path / "targets"), chunk=2)
    found = Counted(guided)
    make_targets(settings, "train", teacher, found)
    assert found.calls == 0  # all of them are in the cache that the script filled


@pytest.mark.slow
def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    run = start(tmp_path, "targets.cache=null")
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 2
    assert errors.strip() == "error: targets.cache is null, so there is nothing to fill; name a folder"
    run = start(tmp_path, "targets.reference.rtol=0.1")
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 2
    assert errors.strip() == "error: rtol=0.1 of the reference belongs to dopri5; ipndm takes fixed steps"


@pytest.mark.slow
def test_two_processes_train_as_one_does_on_a_shared_cache(tmp_path: Path) -> None:
    common = ["solver=ld3", "model=mixture", "trainer=cpu", "trainer.enable_progress_bar=false", "evaluation=off"]
    common += ["logger=csv", "targets.train_samples=200", "fit=gradient"]
    common += [f"fit.gradient.{setting}" for setting in ("iterations=4", "batch_size=8", "validations=1")]
    params = []
    for name, more in (("two", ["trainer.devices=2", "trainer.strategy=ddp"]), ("one", [])):
        folder = tmp_path / name
        command = [sys.executable, str(ROOT / "train.py"), *common, *more, f"hydra.run.dir={folder}"]
        run = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        params.append(read_solver(folder / "solver-last.json").params)
    assert "200 of 200 reference trajectories (train) from the cache" in run.stdout + run.stderr
    for key, value in params[1].items():
        torch.testing.assert_close(params[0][key], value, rtol=0, atol=1e-5)
