"""scripts/make_targets.py as users run it: killed, resumed, and clear about mistakes."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from solverdistill.denoisers.guidance import make_guided
from solverdistill.denoisers.wrappers import Counted
from solverdistill.references.solving import Reference
from solverdistill.references.targets import CHUNK, TargetSettings, make_targets
from solverdistill.teachers.digits import digits_kde
from solverdistill.teachers.mixture import toy_mixture
from tests.commands import run_here, start

SCRIPT = "scripts/make_targets.py"
FEW = ["targets=default", "targets.validation_samples=3", "targets.test_samples=5", "trainer=cpu", "model=mixture"]


def shards(folder: Path) -> dict[str, int]:
    """Time of writing of every finished training shard."""
    found = folder.glob("home/targets/mixture-train-*/shard-*.safetensors")
    return {path.name: path.stat().st_mtime_ns for path in found}


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    chunks = 300
    run = start(tmp_path, SCRIPT, *FEW, f"targets.train_samples={chunks * CHUNK}")
    deadline = time.monotonic() + 120
    while len(shards(tmp_path)) < 3 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    run.kill()
    run.communicate()
    before = shards(tmp_path)
    assert 3 <= len(before) < chunks

    wanted = len(before) + 4
    again = run_here(tmp_path, SCRIPT, *FEW, f"targets.train_samples={(wanted - 1) * CHUNK + 1}")
    assert again.returncode == 0, again.stderr
    after = shards(tmp_path)
    assert len(after) == wanted
    assert len([name for name in before if after[name] == before[name]]) >= len(before) - 1
    hits = re.search(r"(\d+) of \d+ reference trajectories \(train\) from the cache", again.stdout + again.stderr)
    assert hits is not None and int(hits.group(1)) >= (len(before) - 1) * CHUNK
    told = rf"train: {(wanted - 1) * CHUNK + 1} reference trajectories; [\d.]+ MB in {tmp_path}/home"
    assert re.search(told, again.stdout)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")] == ["home/targets"]

    options = {"train_samples": wanted * CHUNK, "reference": Reference(rho=7.0)}
    cache = str(tmp_path / "home" / "targets")
    teacher = toy_mixture()
    cached = make_targets(TargetSettings(cache=cache, **options), "train", teacher, teacher)
    solved = make_targets(TargetSettings(**options), "train", teacher, teacher)
    assert torch.equal(cached.batch.end, solved.batch.end) and torch.equal(cached.batch.noise, solved.batch.noise)
    assert shards(tmp_path) == after


def test_a_rule_of_guidance_and_smaller_chunks(tmp_path: Path) -> None:
    rule = {"scale": 3.0, "interval": [10.0, 0.1]}
    chosen = ["model=digits_kde", f"guidance={rule}".replace("'", ""), "targets.train_samples=3", "targets.chunk=2"]
    run = run_here(tmp_path, SCRIPT, *FEW, *chosen, "targets.reference.steps=4")
    assert run.returncode == 0, run.stderr
    teacher, guided = make_guided(digits_kde(0.15), rule)
    settings = TargetSettings(Reference(steps=4, rho=7.0), 3, cache=str(tmp_path / "home" / "targets"), chunk=2)
    found = Counted(guided)
    make_targets(settings, "train", teacher, found)
    assert found.calls == 0  # all of them are in the cache that the script filled


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    run = run_here(tmp_path, SCRIPT, *FEW, "targets.cache=null")
    assert run.returncode == 2
    assert run.stderr.strip() == "error: targets.cache is null, so there is nothing to fill; name a folder"
    run = run_here(tmp_path, SCRIPT, *FEW, "targets.reference.rtol=0.1")
    assert run.returncode == 2
    assert run.stderr.strip() == "error: rtol=0.1 of the reference belongs to dopri5; ipndm takes fixed steps"
