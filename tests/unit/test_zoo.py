"""The zoo: every file loads, plays, can be trained again, and is what its generator makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from scripts.make_zoo import make
from solverdistill import load_solver, make_path, read_solver, sample, zoo
from solverdistill.commands.main import main
from solverdistill.families import build
from solverdistill.programs.solver_file import schema
from solverdistill.teachers.mixture import toy_mixture

ROOT = Path(__file__).parents[2]
NAMES = zoo.names()


def test_every_solver_plays_and_its_card_is_complete() -> None:
    noise, denoiser = torch.randn(2, 6, dtype=torch.float64), toy_mixture()
    assert len(NAMES) == 101
    for name in NAMES:
        card, solver = zoo.card(name), read_solver(f"zoo:{name}")
        assert name == f"{name.split('-')[0]}-{name.split('-', 1)[1].rsplit('-nfe')[0]}-nfe{card.nfe}"
        assert (card.nfe, card.depth) == (solver.program.nfe, solver.program.depth)
        assert card.source and card.model and card.family == solver.family["name"]
        assert all({"metric", "value", "reference"} == set(result) for result in card.results)
        end = sample(solver.program, denoiser, noise)
        assert end.isfinite().all() and end.abs().max() < 10, name
        assert (solver.program.level >= 0).all(), name


@pytest.mark.parametrize("name", NAMES[::7])
def test_a_solver_can_be_trained_further(name: str) -> None:
    solver = read_solver(f"zoo:{name}")
    family = build(**solver.family)
    torch.testing.assert_close(family.program(solver.params).B, solver.program.B, rtol=1e-12, atol=1e-14)


def test_the_files_are_what_the_generator_makes(tmp_path: Path) -> None:
    assert sorted(make(tmp_path)) == sorted(NAMES)
    for name in NAMES:
        ours, again = read_solver(f"zoo:{name}"), read_solver(tmp_path / f"{name}.json")
        assert ours.provenance == again.provenance, name
        for part in ("A", "B", "alpha", "sigma", "level"):
            torch.testing.assert_close(getattr(ours.program, part), getattr(again.program, part), rtol=1e-9, atol=1e-12)


def test_the_files_obey_the_schema() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    for name in NAMES:
        validator.validate(json.loads(zoo.path_of(name).read_text()))


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("ays-sd15-nfe10", [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]),
        ("ays-sdxl-nfe10", [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]),
    ],
)
def test_published_levels_and_published_timesteps_agree(name: str, timesteps: list[int]) -> None:
    """AYS is published as both."""
    solver = read_solver(f"zoo:{name}")
    path = make_path(solver.provenance["teacher"]["path"])
    times = path.from_half_log_snr(torch.log(solver.program.alpha / solver.program.sigma)) * 1000 - 1
    assert times.tolist() == pytest.approx(timesteps, abs=1.0)


def test_it_is_small_and_names_no_machine() -> None:
    files = list(zoo.FOLDER.glob("*.json"))
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        assert not re.search(r'"[^"]*(?<![\w.])/\w+/', path.read_text()), path.name


def test_paths_that_are_not_of_the_zoo_stay_paths() -> None:
    assert zoo.resolve("a/solver.json") == Path("a/solver.json")
    assert zoo.resolve(Path("zoo")) == Path("zoo")
    for name in ("epd-cifar10-nfe9", "../solver", ""):
        with pytest.raises(ValueError, match=f"the zoo has no solver '{name}'"):
            load_solver(f"zoo:{name}")


def test_list_shows_all_or_those_that_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    main(["zoo", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == NAMES
    assert lines[0].split() == ["name", "nfe", "depth", "guidance", "published", "model"]
    assert all(len(line) <= 110 for line in lines)
    main(["zoo", "list", "--model", "cifar", "--family", "dyweight", "--nfe", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == [f"dyweight-cifar10-nfe{n}" for n in (3, 4, 5)]
    with pytest.raises(SystemExit):
        main(["zoo", "list", "--model", "dog"])
    assert capsys.readouterr().err.startswith("error: no solver of the zoo")


def test_show_tells_the_published_result_with_its_reference(capsys: pytest.CaptureFixture[str]) -> None:
    main(["zoo", "show", "epd-cifar10-nfe8"])
    text = capsys.readouterr().out
    assert "8 evaluations, 5 of them one after the other" in text
    assert "FID 4.33 (Zhu et al., ICCV 2025, Table 1)" in text
    assert 'load_solver("zoo:epd-cifar10-nfe8")' in text


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "solverdistill", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_command_works_from_any_folder(tmp_path: Path) -> None:
    done = run("zoo", "export", "dss-sit-nfe5", "--out", "mine.json", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine.json\n", "")
    assert torch.equal(load_solver(tmp_path / "mine.json").B, load_solver("zoo:dss-sit-nfe5").B)


def test_a_wrong_name_is_one_sentence_with_the_nearest_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(["zoo", "show", "dss-sit-nfe4"])
    told = capsys.readouterr().err
    assert exit_code.value.code == 2 and told.count("\n") == 1
    assert told.startswith("error: the zoo has no solver 'dss-sit-nfe4'; nearest: dss-sit-nfe")
