"""One Python call: the numbers of the command line, nothing written, nothing left changed."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

import solverdistill as sd
from solverdistill.training.config_files import find_configs
from solverdistill.training.distilling import configure
from solverdistill.training.run import train

ROOT = Path(__file__).parents[2]
TARGETS = {"train_samples": 16, "validation_samples": 8, "test_samples": 8, "cache": None}
FEW = {"race": {"lower_starts": False}, "gauss_newton": {"iterations": 2}}
SHORT = {"gradient": {"iterations": 3, "batch_size": 4, "validations": 1}}

# What a notebook would run, where nothing but the extra `fit` is installed; prints what it found.
ALONE = """
import json, logging, sys, warnings

for name in ("hydra", "omegaconf", "lightning", "wandb", "cleanfid"):
    sys.modules[name] = None  # not installed
import torch
import solverdistill as sd
before = torch.get_rng_state(), list(warnings.filters), logging.getLogger().level
settings = json.loads(sys.argv[1])
done = sd.distill("edm_digits", solver="gas", nfe=4, **settings, device="cpu")
after = torch.get_rng_state(), list(warnings.filters), logging.getLogger().level
try:
    sd.distill("mixture", solver="gas", nfe=4, fit="gradient")
except ValueError as error:
    refused = str(error)
rows = done.compare()
print(json.dumps({
    "unchanged": bool(torch.equal(before[0], after[0])) and before[1:] == after[1:],
    "refused": refused, "rmse": done.rmse, "rows": [row.label for row in rows], "html": rows._repr_html_(),
    "params": {name: value.tolist() for name, value in done.params.items()}, "text": repr(rows), "said": repr(done),
    "provenance": {name: done.provenance[name] for name in ("teacher", "guidance", "reference", "fit", "evaluations")},
}))
"""


def by_command(output: Path, *overrides: str) -> Any:
    """The solver file that the command line writes with the same settings."""
    given = [f"targets.{name}={'null' if value is None else value}" for name, value in TARGETS.items()]
    quiet = ["logger=csv", "trainer=cpu", "trainer.enable_progress_bar=false", f"output_dir={output}", "run_name=test"]
    with initialize_config_dir(str(find_configs()), version_base="1.3"):
        config = compose("train", overrides=[*given, *quiet, *overrides])
    output.mkdir()
    train(config)
    return sd.read_solver(output / "solver.json")


def assert_same(done: sd.Distilled, file: sd.SolverFile) -> None:
    assert done.params.keys() == file.params.keys()
    for name, value in done.params.items():
        assert torch.equal(value, file.params[name]), name
    assert torch.equal(done.program.B, file.program.B) and torch.equal(done.program.A, file.program.A)


@pytest.mark.slow
def test_it_gives_the_numbers_of_the_command_line_alone_and_writes_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "HOME": str(empty), "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path)}
    environment |= {"OMP_NUM_THREADS": "1"}  # as conftest does
    command = [sys.executable, "-W", "error", "-c", ALONE, json.dumps({"targets": TARGETS, "fit": FEW})]
    ran = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert not list(empty.iterdir()) and not ran.stderr
    found = json.loads(ran.stdout)
    assert found["unchanged"]
    assert found["refused"] == "fit=gradient needs lightning; pip install 'solverdistill[train]'"
    few = ["fit.gauss_newton.iterations=2", "fit.race.lower_starts=false"]
    file = by_command(tmp_path / "run", "solver=gas", "model=edm_digits", "solver.nfe=4", "evaluation=off", *few)
    for name, value in found["params"].items():
        torch.testing.assert_close(torch.tensor(value, dtype=torch.float64), file.params[name], rtol=1e-6, atol=1e-9)
    assert found["provenance"] == {name: file.provenance[name] for name in found["provenance"]}
    assert found["rows"][0] == "gas" and found["rows"][-1] == "reference" and len(found["rows"]) > 10
    assert "UniPC" in found["text"] and "<table>" in found["html"] and "data:image/png;base64," in found["html"]
    assert found["said"].startswith("Distilled(gas for edm_digits: nfe 4, depth 4, RMSE 0.")


@pytest.mark.slow
def test_gradient_descent_gives_the_numbers_of_the_command_line(tmp_path: Path) -> None:
    before = logging.getLogger("lightning.pytorch").level, list(warnings.filters), torch.get_rng_state()
    done = sd.distill("mixture", solver="dss", nfe=3, fit=SHORT, targets=TARGETS, seed=3, guidance=1.0, progress=False)
    assert (logging.getLogger("lightning.pytorch").level, list(warnings.filters)) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    short = [f"fit.gradient.{name}={value}" for name, value in SHORT["gradient"].items()]
    chosen = ["solver=dss", "model=mixture", "solver.nfe=3", "seed=3", "fit=gradient", "evaluation=off", *short]
    assert_same(done, by_command(tmp_path / "run", *chosen))
    assert [report.fit for report in done.reports] == ["targets", "gradient"]


def test_a_live_teacher_and_a_family_are_taken_as_they_are(tmp_path: Path) -> None:
    teacher = sd.mixture(means=torch.eye(2, 6), weights=torch.ones(2), stds=torch.full((2,), 0.3))
    family = sd.families.build("bns", grid=sd.Grid("polynomial", steps=4, start=80.0, end=0.002))
    done = sd.distill(teacher, family, fit="least_squares", targets=TARGETS)
    assert done.family.nfe == done.program.nfe == 4 and done.rmse > 0
    written = sd.read_solver(done.save(tmp_path / "solver.json"))
    assert_same(done, written)
    assert written.provenance["teacher"]["fingerprint"] == teacher.fingerprint()
    ends = [sd.sample(program, teacher, torch.ones(2, 6)) for program in (written.program, done.program)]
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="the bns that was given spends 4 evaluations, not nfe=5"):
        sd.distill(teacher, family, nfe=5)


def test_a_mapping_changes_what_a_group_has() -> None:
    settings = {"name": "corrected", "nfe": 3, "grid": {"kind": "quadratic"}}
    done = sd.distill("mixture", settings, fit=["least_squares"], targets={**TARGETS, "reference": {"steps": 20}})
    assert done.run.student.rule == sd.Grid("quadratic", steps=3, start=80.0, end=0.002, rho=done.run.student.rule.rho)
    assert done.provenance["reference"]["steps"] == 20 and done.provenance["reference"]["solver"] == "ipndm"
    rows = done.compare()
    assert dataclasses.asdict(rows[0])["label"] == "corrected" and repr(rows).count("\n") > 10
    assert done.figure().get_axes()  # of vectors there are errors to draw, and no samples


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"teacher": "edm_digit"}, "model=edm_digit is unknown; known: .*edm_digits"),
        ({"solver": "gass"}, "solver=gass is unknown; known: .*gas"),
        ({"solver": {"name": "gas", "pionts": 3}}, "family 'gas' has no hyperparameter 'pionts'; it has: "),
        ({"fit": "rase"}, "fit=rase is unknown; known: .*race"),
        ({"fit": {"race": {"firsst": 2}}}, "fit.race has no setting 'firsst'; it has: .*first"),
        ({"fit": ["gauss_newton", "race"]}, "the race finds where to start, so it has to come first"),
        ({"fit": []}, "fit is empty; name at least one"),
        ({"targets": {"reference": {"stepps": 3}}}, "targets.reference has no setting 'stepps'; it has: .*steps"),
        ({"targets": {"reference": "dopri5"}}, "targets.reference is a mapping, as solver=heun, .*, not 'dopri5'"),
        ({"fit": 5}, "fit is a name or a mapping of settings, not 5"),
        ({"targets": ["dopri5"]}, "targets is a name or a mapping of settings, not .'dopri5'."),
        ({"targets": {"train_samples": 0}}, "targets.train_samples must be at least 1, not 0"),
        ({"solver": {"name": "gas", "nfe": 5}}, "nfe=4 and the solver's own nfe=5 disagree; give one of them"),
        ({"nfe": 0}, "solver.nfe must be at least 1, not 0"),
        ({"guidance": "strong"}, "guidance must be a number or a mapping"),
        ({"teacher": torch.nn.Linear(2, 2)}, "which a Linear is not; of a network of your own make one with .*wrap"),
        ({"solver": sd.families.ROSTER["gas"]}, "or a family on its grid, not <class .*; .* its dotted name"),
        ({"objective": "endpoint"}, "^objective: only gradient descent has an objective, and .*race,gauss_newton,grad"),
        ({"fit": "race", "optimizer": {"lr": 0.1}}, "^optimizer: only gradient descent has an optimizer, and .*race"),
        ({"device": "cuda:77"}, "device=cuda:77 cannot be used here: "),
        ({"device": "gpu"}, "device=gpu cannot be used here: "),
    ],
)
def test_mistakes_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence) as raised:
        sd.distill(**{"teacher": "mixture", "solver": "gas", "nfe": 4, "targets": TARGETS, **options})
    assert "\n" not in str(raised.value)


def test_settings_without_a_name_are_those_of_the_default_solver() -> None:
    found, named = (configure("mixture", solver, None, {})["solver"] for solver in ({"nfe": 8}, "auto"))
    assert found == {**named, "nfe": 8} and found["among"]


def test_a_teacher_is_loaded_by_its_name() -> None:
    assert sd.load_teacher("mixture", {"dims": 3}).shape == (3,)
    with pytest.raises(ValueError, match="model mixture has no setting 'dim'; it has: dims, components, seed"):
        sd.load_teacher("mixture", {"dim": 3})


def test_a_teacher_that_changes_is_not_compared_with() -> None:
    scale = [0.5]
    teacher = sd.wrap(lambda x, time: scale[0] * x, "denoised", "edm", (6,), noise_range=(10.0, 0.01))
    done = sd.distill(teacher, "bns", 2, fit="least_squares", targets=TARGETS, progress=False)
    scale[0] = 0.25
    with pytest.raises(ValueError, match="has changed since the solver was fitted to it"):
        done.compare()
