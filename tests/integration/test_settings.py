"""What no run can be made of is refused before any work, in one sentence, with exit code 2, and leaves no folder."""

from __future__ import annotations

import json
import os
import pwd
import sys
import time
from pathlib import Path

import pytest
import torch

from solverdistill import Grid, families, save_solver
from solverdistill.evaluation.after_training import EvaluationSettings
from solverdistill.references import targets
from tests.commands import Ran, run_alone, run_here

TINY = ["model=mixture", "targets.cache=null", "logger=csv"]
GRADIENT = ["solver=epd", "fit=gradient"]
MEASURED = ["model=mixture", "baselines=[euler]", "nfe=[4]", "samples=8", "extractor=null"]
DRAWN = ["model=edm_digits", "solver_file=zoo:ays-sd15-nfe10"]
TRAIN, EVALUATE, SAMPLE = "train.py", "scripts/evaluate.py", "scripts/sample.py"
IMPORT, SEARCH = "scripts/import_coefficients.py", "scripts/search_grid.py"
TEXT = "text.txt"  # lies in the working folder, and is no file of ours
# A setting, and what its sentence has to say: its name and its value, or what can be had.
REFUSED: list[tuple[str, list[str], str]] = [
    *(
        (TRAIN, [f"guidance={value}"], f"guidance.scale must be a finite number or [lowest, highest], not {value}")
        for value in ("nan", "inf", "-inf")
    ),
    (TRAIN, ["guidance=-1"], "guidance must be at least 0, not -1"),
    (TRAIN, ["guidance={scale: [-1.0, 2.0]}"], "guidance must be at least 0, not -1.0"),
    (TRAIN, ["guidance={scale: 2.0, interval: [nan, 0.1]}"], "guidance.interval must be a pair of finite numbers"),
    *(
        (
            TRAIN,
            [*GRADIENT, f"optimizer.lr={value}"],
            f"optimizer.lr must be a finite number of at least 0, not {value}",
        )
        for value in ("nan", "inf", "-0.1")
    ),
    (TRAIN, [*GRADIENT, "+optimizer.lr_of.r_params=-1.0"], "optimizer.lr_of.r_params must be a finite number"),
    (TRAIN, [*GRADIENT, "optimizer.final_lr=nan"], "optimizer.final_lr must be a finite number"),
    (TRAIN, [*GRADIENT, "optimizer.betas=[2.0,0.9]"], "optimizer of the configuration cannot be made"),
    (TRAIN, [*GRADIENT, "fit.gradient.gradient_clip=-1"], "fit.gradient_clip must be above 0, not -1"),
    (TRAIN, [*GRADIENT, "fit.gradient.ema=1.5"], "fit.ema must be below 1, not 1.5"),
    (TRAIN, [*GRADIENT, "fit.gradient.rollback=nan"], "rollback of GradientFit must be a finite number, not nan"),
    (TRAIN, [*GRADIENT, f"ckpt_path={TEXT}"], f"ckpt_path={TEXT} is no checkpoint of a run"),
    (TRAIN, [*GRADIENT, "ckpt_path=none.ckpt"], "checkpoint none.ckpt (ckpt_path) does not exist"),
    *(
        (
            TRAIN,
            ["targets.reference.grid=polynomial", f"targets.reference.rho={value}"],
            "rho of a grid must be above 0",
        )
        for value in (0, -1)
    ),
    (TRAIN, ["targets.reference.steps=99999"], "targets.reference.steps must be at most 1,000, not 99999"),
    (TRAIN, ["targets.train_samples=99999999999"], "targets.train_samples must be at most 1,073,741,824"),
    (TRAIN, ["targets.seed=-1"], "targets.seed must be at least 0, not -1"),
    (TRAIN, ["solver=epd", "solver.grid.rho=0"], "rho of a grid must be above 0, not 0"),
    (TRAIN, ["seed=abc"], "seed must be an integer, not 'abc'"),
    (TRAIN, ["seed=-1"], "seed must be at least 0, not -1"),
    (TRAIN, ["seed=99999999999999999999"], "seed must be at most 4,294,967,295, not 99999999999999999999"),
    (TRAIN, ["solver=epd", "solver.points=1000"], "points of epd must be at most 16, not 1000"),
    (TRAIN, ["solver.nfe=0"], "solver.nfe must be at least 1, not 0"),
    (TRAIN, ["solver=gas", "solver.nfe=99999"], "solver.nfe must be at most 256, not 99999"),
    (TRAIN, ["solver=parallel", "solver.depth=99999"], "solver.depth must be at most 256, not 99999"),
    *(
        (TRAIN, [f"evaluation.{name}=0"], f"evaluation.{name} must be at least 1, not 0")
        for name in ("batch_size", "grid_samples")
    ),
    (TRAIN, ["evaluation.grid_samples=-1"], "evaluation.grid_samples must be at least 1, not -1"),
    (TRAIN, ["evaluation.curve_nfe=[0]"], "evaluation.curve_nfe must be at least 1, not 0"),
    (TRAIN, [f"hydra.run.dir={TEXT}/inside"], f"Not a directory: {TEXT}/inside"),
    (TRAIN, [f"output_dir={TEXT}/inside"], f"output_dir={TEXT}/inside cannot be written to: Not a directory"),
    (TRAIN, ["trainer.devices=99999"], "trainer.devices must be at most"),
    (TRAIN, ["trainer.devices=nine"], "trainer of the configuration cannot be made"),
    (TRAIN, ["trainer.accelerator=foo"], "You selected an invalid accelerator name"),
    (TRAIN, ["+fit.race.steps=99999"], "fit.race has no setting 'steps'"),
    (TRAIN, ["fit.race.first=-3"], "fit.race.first must be at least 1, not -3"),
    (TRAIN, ["budget=much"], "budget=much is no budget"),
    (SEARCH, ["model=mixture", "+search.steps=99999"], "steps of a search among the points of a reference must be at"),
    (SEARCH, ["model=mixture", "+search.steps=5", "trainer.accelerator=foo"], "invalid accelerator name"),
    (EVALUATE, ["model=mixture", "solvers=[none.json]"], "solver file none.json cannot be read"),
    (EVALUATE, ["model=mixture", "baselines=[eiler]", "nfe=[4]"], "baseline 'eiler' is no classical solver; known: "),
    (EVALUATE, [*MEASURED, "nfe=[0]"], "nfe must be at least 1, not 0"),
    (EVALUATE, [*MEASURED, "nfe=[99999]"], "nfe must be at most 256, not 99999"),
    (EVALUATE, [*MEASURED, "batch_size=0"], "batch_size must be at least 1, not 0"),
    (EVALUATE, [*MEASURED, "grid_samples=-1"], "grid_samples must be at least 1, not -1"),
    (EVALUATE, [*MEASURED, "guidance=nan"], "guidance.scale must be a finite number"),
    (EVALUATE, [*MEASURED, "device=foo"], "device=foo cannot be used here"),
    (EVALUATE, [*MEASURED, f"output_dir={TEXT}/inside"], f"output_dir={TEXT}/inside cannot be written to"),
    (SAMPLE, [*DRAWN, "device=foo"], "device=foo cannot be used here"),
    (SAMPLE, [*DRAWN, "seeds=0-99999999999"], "number of seeds must be at most 1,000,000, not 100000000000"),
    (SAMPLE, [*DRAWN, "seeds=99999999999"], "seeds must be one or more integers from 0 to 2^30 - 1, not [99999999999]"),
    (SAMPLE, [*DRAWN, f"seeds={'9' * 400}"], "seeds must look like 0-15"),
    (SAMPLE, [*DRAWN, "seeds=abc"], "seeds must look like 0-15 or 1,4,8-11, not 'abc'"),
    (SAMPLE, [*DRAWN, "batch_size=0"], "batch_size must be at least 1, not 0"),
    (SAMPLE, [*DRAWN, f"output_dir={TEXT}/inside"], f"output_dir={TEXT}/inside cannot be written to"),
    (SAMPLE, ["model=edm_digits", "solver_file=none.json"], "solver file none.json cannot be read"),
    (IMPORT, [TEXT, "--grid", "a,b", "--out", "a.json"], "--grid takes noise levels separated by commas"),
]
if not torch.cuda.is_available():
    REFUSED += [
        (TRAIN, ["trainer.accelerator=cuda"], "`CUDAAccelerator` can not run on your system"),
        (EVALUATE, [*MEASURED, "device=cuda"], "device=cuda cannot be used here"),
        (SAMPLE, [*DRAWN, "device=cuda"], "device=cuda cannot be used here"),
    ]


def prepare(script: str, arguments: list[str]) -> list[str]:
    """Settings with small ones before them; one given twice counts as given last."""
    stated = {argument.split("=")[0] for argument in arguments}
    first = [setting for setting in TINY if setting.split("=")[0] not in stated] if script == TRAIN else []
    last = {argument.split("=")[0]: argument for argument in arguments}
    return [*first, *(last.values() if script != IMPORT else arguments)]


def check_refused(folder: Path, ran: Ran, sentence: str) -> None:
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    assert ran.returncode == 2 and len(lines) == 1, ran.stderr
    assert lines[0].startswith("error: ") and sentence in lines[0]
    assert sorted(path.name for path in folder.iterdir()) == [TEXT]


@pytest.mark.parametrize(("script", "arguments", "sentence"), REFUSED, ids=lambda value: str(value)[-60:])
def test_it_is_refused_before_any_work(
    script: str, arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("a reference was solved")

    monkeypatch.setattr(targets.Reference, "solve", work)
    (tmp_path / TEXT).write_text("a = 1\n")
    began = time.process_time()
    ran = run_here(tmp_path, script, *prepare(script, arguments))
    check_refused(tmp_path, ran, sentence)
    assert time.process_time() - began < 10, "as fast as a command that loads a network"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "sentence"), [REFUSED[0], REFUSED[-1], (TRAIN, ["output_dir=/proc/no"], "output_dir=/proc")]
)
def test_it_is_refused_in_a_process_of_its_own(
    script: str, arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / TEXT).write_text("a = 1\n")
    check_refused(tmp_path, run_alone(tmp_path, script, *prepare(script, arguments)), sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: [1,\nb: 2", "conf/model/mine.yaml, line 2, column 5, is no YAML: expected ',' or ']'"),
        (b"a: 1\n  b: 2", "conf/model/mine.yaml, line 2, column 4, is no YAML: mapping values are not allowed here"),
        (b"\xff\xfe", "a file is not UTF-8"),
    ],
)
def test_a_broken_configuration_is_told_with_its_place(text: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / TEXT).write_text("a = 1\n")
    folder = tmp_path / "conf"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_bytes(text)
    ran = run_here(tmp_path, TRAIN, "--config-dir", "conf", "model=mine")
    lines = ran.stderr.splitlines()
    assert ran.returncode == 2 and len(lines) == 1 and sentence in lines[0], ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", TEXT]


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="the user's entry is that of Linux")
@pytest.mark.parametrize("logger", ["csv", "default"])
def test_a_user_without_a_home_is_told(logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user without an entry; with the caches elsewhere, wandb alone asks for a home."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    (tmp_path / TEXT).write_text("a = 1\n")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    home = [] if logger == "default" else ["targets.cache='~/cache'"]
    ran = run_here(tmp_path, TRAIN, "model=mixture", f"logger={logger}", "fit=race", *home)
    check_refused(tmp_path, ran, "HOME")


def test_a_cost_that_is_large_and_possible_is_planned_at_once(tmp_path: Path) -> None:
    """A hundred evaluations are refused by nobody, and looked at in no time; no state is made of such a run here."""
    assert EvaluationSettings(curve_nfe=[100, 256]).expected(101, 101, 256) > 0
    began = time.process_time()
    ran = run_here(tmp_path, TRAIN, *TINY, "solver=gas", "solver.nfe=101", "fit=race", "fit.race.first=0")
    assert ran.returncode == 2 and "fit.race.first" in ran.stderr
    ran = run_here(tmp_path, TRAIN, *TINY, "solver=epd", "solver.nfe=101", "fit=point_search", "trainer.devices=99999")
    assert ran.returncode == 2 and "trainer.devices" in ran.stderr
    assert time.process_time() - began < 20


@pytest.mark.parametrize("teacher", ["edm_digits", "a teacher of others", 7, None, ["edm_digits"]])
def test_a_file_may_say_of_its_teacher_what_it_likes(teacher: object, tmp_path: Path) -> None:
    solver = families.build("euler", Grid(steps=2))
    save_solver(tmp_path / "solver.json", solver.program(), solver.hyperparameters(), {}, {"teacher": teacher})
    ran = run_here(tmp_path, SAMPLE, "model=edm_digits", "solver_file=solver.json", "seeds=0-1", "output_dir=images")
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "images" / "images").iterdir())) == 2


def test_a_file_with_an_impossible_guidance_is_refused(tmp_path: Path) -> None:
    solver = families.build("euler", Grid(steps=2))
    save_solver(tmp_path / TEXT, solver.program(), {}, {}, {"guidance": "strong"})
    ran = run_here(tmp_path, SAMPLE, "model=edm_digits", f"solver_file={TEXT}", "seeds=0-1")
    check_refused(tmp_path, ran, "guidance must be a number or a mapping")
    document = json.loads((tmp_path / TEXT).read_text())
    assert document["provenance"]["guidance"] == "strong"
