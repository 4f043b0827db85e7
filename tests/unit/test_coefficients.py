"""The coefficient file: exact round trip, schema, atomic writing, refusals in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from solverdistill import Grid, SolverFileError, families, load_solver, read_solver, save_solver
from solverdistill.denoisers.guidance import GuidanceRule
from solverdistill.programs.solver_file import schema
from solverdistill.support.files import write_atomically

PROVENANCE = {
    "teacher": {"name": "toy", "fingerprint": "0", "prediction": "denoised", "path": {"name": "edm"}},
    "guidance": 1.0,
}


def write(path: Path, name: str = "epd", **options: Any) -> Path:
    family = families.build(name, Grid("polynomial", 3), **options)
    params = family.init(1)
    return save_solver(path, family.program(params), family.hyperparameters(), params, PROVENANCE)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    family = families.build("epd", Grid("time_uniform", 4), points=3)
    params = family.init(2)
    program = family.program(params)
    save_solver(tmp_path / "s.json", program, family.hyperparameters(), params, PROVENANCE)
    read = read_solver(tmp_path / "s.json")
    for name in ("alpha", "sigma", "A", "B", "mask", "level"):
        assert torch.equal(getattr(read.program, name), getattr(program, name)), name
    assert read.program.stages == program.stages
    assert families.build(**read.family) == family
    assert all(torch.equal(read.params[name], value) for name, value in params.items())
    assert read.provenance["nfe"] == program.nfe and read.provenance["teacher"]["name"] == "toy"


@pytest.mark.parametrize("name", sorted(families.ROSTER))
def test_every_family_writes_what_the_schema_says(name: str, tmp_path: Path) -> None:
    document = json.loads(write(tmp_path / "s.json", name).read_text())
    jsonschema.validate(document, schema())
    assert load_solver(tmp_path / "s.json").nfe == document["program"]["nfe"]


@pytest.mark.parametrize(
    ("guidance", "fits"),
    [
        (7.5, True),
        ({"scale": 2.0}, True),
        ({"scale": [2.0, 6.0], "interval": [0.8, 0.2], "channels": 3}, True),
        ({"interval": [0.8, 0.2]}, False),
        ({"scale": [2.0, 4.0, 6.0]}, False),
        ({"scale": 2.0, "strength": 1.0}, False),
        ("7.5", False),
    ],
)
def test_guidance_is_a_number_or_a_rule(guidance: Any, fits: bool, tmp_path: Path) -> None:
    document = {**json.loads(write(tmp_path / "s.json").read_text()), "provenance": {"nfe": 1, "depth": 1}}
    document["provenance"]["guidance"] = guidance
    assert jsonschema.Draft202012Validator(schema()).is_valid(document) == fits
    if fits and isinstance(guidance, dict) and "channels" in guidance:
        assert GuidanceRule.of(guidance).description() == guidance


def test_one_row_per_line(tmp_path: Path) -> None:
    text = write(tmp_path / "s.json").read_text()
    program = json.loads(text)["program"]
    rows = [line for line in text.split("\n") if '"mask"' in line]
    assert len(rows) == len(program["evaluations"]) + len(program["readouts"])


def test_step_programs_are_not_exported(tmp_path: Path) -> None:
    family = families.build("epd_ipndm", Grid("polynomial", 3))
    step = family.step_program(1, family.init(0))
    with pytest.raises(ValueError, match="only programs of one input"):
        save_solver(tmp_path / "s.json", step)
    assert list(tmp_path.iterdir()) == []


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for key in parents:
            document = document[key]
        del document[last]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("format"), "field format is missing"),
        (put("solverdistill/2", "format"), "field format is 'solverdistill/2'"),
        (drop("program.stages"), "field program.stages is missing"),
        (put(9, "program", "nfe"), "field program.evaluations has 8 rows but program.nfe is 9"),
        (put(1, "program", "depth"), "field program.depth is 1"),
        (put(2, "program", "inputs"), "field program.inputs is 2"),
        (put([1.0], "program", "evaluations", 0, "told"), r"field program.evaluations\[0\].told has 1 numbers"),
        (put("x", "program", "evaluations", 0, "A", 0), r"field program.evaluations\[0\].A\[0\] must be a number"),
        (put(True, "program", "evaluations", 0, "A", 0), r"field program.evaluations\[0\].A\[0\] must be a number"),
        (put(1, "program", "evaluations", 0, "mask", 3), "evaluation row 0 is not causal"),
        (put([], "program", "readouts"), "at least one input and one readout"),
        (put([["a"]], "family", "params", "r_params"), "field family.params.r_params is not an array of numbers"),
        (put([], "provenance"), "field provenance must be an object"),
    ],
)
def test_refusals_name_file_and_field(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.json", afs=True)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(SolverFileError, match=message) as caught:
        load_solver(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated or not JSON"),
        (lambda text: text.replace('"nfe": 8', '"nfe": NaN'), "NaN"),
        (lambda text: text.replace('"nfe": 8', '"nfe": Infinity'), "Infinity"),
        (lambda text: text.replace('"nfe": 8', '"nfe": 8, "nfe": 8'), "'nfe' appears twice"),
        (lambda text: "[1, 2]", "top level must be an object"),
        (lambda text: text.replace('"told": [', '"told": [1e999, ', 1), "1e999, which is too large"),
    ],
)
def test_broken_text_is_refused(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.json", afs=True)
    path.write_text(change(path.read_text()))
    with pytest.raises(SolverFileError, match=message) as caught:
        load_solver(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SolverFileError, match="cannot be read"):
        load_solver(tmp_path / "none.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s.json")
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "half")
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
