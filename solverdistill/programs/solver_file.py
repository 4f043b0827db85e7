"""The coefficient file, solver.json: written atomically, read without running anything.

UTF-8 JSON with one row of the table per line, so that two solvers can be compared with `diff`. It holds the program,
the family with its raw params and hyperparameters, and where it came from. `solver.schema.json` beside this module is
its JSON Schema; the format's name carries its version.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.programs.program import SolverProgram
from solverdistill.support.files import write_atomically
from solverdistill.support.json_files import parse_json
from solverdistill.support.limits import shown
from solverdistill.zoo import resolve

FORMAT = "solverdistill/1"


class SolverFileError(ValueError):
    """A solver file that cannot be used; the message names the file and the field."""


@dataclass(frozen=True)
class SolverFile:
    """Everything that a solver.json holds.

    Args:
        program: The solver itself.
        family: Name and hyperparameters with which `families.build` makes the family again.
        params: Raw params of the family, float64.
        provenance: Teacher, path, reference solver, objective, metrics, versions.
    """

    program: SolverProgram
    family: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Tensor] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def teacher(self) -> Mapping[str, Any]:
        """What the provenance says of the teacher, a name alone included; empty where it says nothing."""
        said = self.provenance.get("teacher")
        return said if isinstance(said, Mapping) else {"name": said} if isinstance(said, str) else {}


def save_solver(
    path: str | os.PathLike[str],
    program: SolverProgram,
    family: Mapping[str, Any] | None = None,
    params: Mapping[str, Tensor] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a solver file atomically: after a crash the old file, or none, is there, never half of one.

    Args:
        path: Where to write; the folder must exist.
        program: A program of one input (the noise).
        family: The family's name and hyperparameters, as `Family.hyperparameters()` gives them.
        params: The family's raw params.
        provenance: JSON-able facts about where the solver came from.
    Raises:
        ValueError: the program has several inputs, or a number is not finite.
    """
    if program.inputs != 1:
        raise ValueError(f"only programs of one input can be exported; this one has {program.inputs} (a step program?)")
    program = program.detach().to("cpu")
    document = {
        "format": FORMAT,
        "program": program_to_json(program),
        "family": {**(family or {}), "params": {name: value.tolist() for name, value in (params or {}).items()}},
        "provenance": {**(provenance or {}), "nfe": program.nfe, "depth": program.depth},
    }
    return write_atomically(path, _dumps(document) + "\n")


def load_solver(path: str | os.PathLike[str]) -> SolverProgram:
    """Read the program of a solver file, or of `zoo:<name>`, ready for `sample`.

    Raises:
        ValueError: the zoo has no solver of that name.
        SolverFileError: the file is missing, truncated, of an unknown version, or holds a table that is not a solver.
    """
    return read_solver(path).program


def read_solver(path: str | os.PathLike[str]) -> SolverFile:
    """Read a solver file with its family, params and provenance.

    Raises:
        SolverFileError: as `load_solver`.
    """
    try:
        text = resolve(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SolverFileError(f"solver file {path} cannot be read: {error}") from None
    try:
        document = parse_json(text, _no_duplicates, _no_constant)
        return _parse(_Node(document, ""))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SolverFileError(f"solver file {path} is truncated or not JSON at {where}: {error.msg}") from None
    except ValueError as error:
        raise SolverFileError(f"solver file {path} is refused: {error}") from None


def schema() -> dict[str, Any]:
    """The JSON Schema of the file format."""
    return json.loads(
        resources.files("solverdistill.programs").joinpath("solver.schema.json").read_text(encoding="utf-8")
    )


def program_to_json(program: SolverProgram) -> dict[str, Any]:
    """A program of one input as a solver file holds it; floats round-trip exactly."""
    mask = program.mask.int().tolist()
    told = torch.stack([program.alpha, program.sigma], dim=1).tolist()
    rows = [
        {"level": level, "A": a, "B": b, "mask": used}
        for level, a, b, used in zip(program.level.tolist(), program.A.tolist(), program.B.tolist(), mask, strict=True)
    ]
    return {
        "nfe": program.nfe,
        "depth": program.depth,
        "inputs": program.inputs,
        "stages": [list(stage) for stage in program.stages],
        "evaluations": [{"told": pair, **row} for pair, row in zip(told, rows, strict=False)],
        "readouts": rows[program.nfe :],
    }


def program_from_json(document: Any) -> SolverProgram:
    """The program that `program_to_json` described.

    Raises:
        ValueError: it describes none; the message names the field.
    """
    return _parse_program(_Node(document, "program"))


def _dumps(value: Any, indent: str = "") -> str:
    """JSON with the top levels indented and every row of numbers on one line; floats round-trip exactly."""
    inner = indent + " "
    if isinstance(value, Mapping) and not (len(indent) >= 3 and not _deep(value)):
        items = [f"{inner}{json.dumps(str(key))}: {_dumps(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + indent + "}" if items else "{}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        return "[\n" + ",\n".join(inner + json.dumps(item, allow_nan=False) for item in value) + "\n" + indent + "]"
    return json.dumps(value, allow_nan=False)


def _deep(value: Any) -> bool:
    return any(isinstance(item, Mapping) for item in (value.values() if isinstance(value, Mapping) else value))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {shown(key)} appears twice")
        result[key] = value
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not a finite number")


class _Node:
    """A value of the document with the name of its field, for messages."""

    def __init__(self, value: Any, name: str) -> None:
        self.value, self.name = value, name

    def expect(self, kind: type | tuple[type, ...], what: str) -> Any:
        if not isinstance(self.value, kind) or (isinstance(self.value, bool) and kind is not bool):
            raise ValueError(f"field {self.name or 'top level'} must be {what}, not {type(self.value).__name__}")
        return self.value

    def __getitem__(self, key: str) -> _Node:
        name = f"{self.name}.{key}".lstrip(".")
        if key not in self.expect(dict, "an object"):
            raise ValueError(f"field {name} is missing")
        return _Node(self.value[key], name)

    def items(self) -> list[_Node]:
        return [_Node(item, f"{self.name}[{i}]") for i, item in enumerate(self.expect(list, "a list"))]

    def integer(self) -> int:
        return self.expect(int, "an integer")

    def numbers(self, count: int | None = None) -> list[float]:
        values = self.expect(list, "a list of numbers")
        if count is not None and len(values) != count:
            raise ValueError(f"field {self.name} has {len(values)} numbers, expected {count}")
        for item in self.items():
            number = item.expect((int, float), "a number")
            if not math.isfinite(number):
                raise ValueError(f"field {item.name} is not a finite number")
        return [float(value) for value in values]


def _parse(root: _Node) -> SolverFile:
    version = root["format"].expect(str, "a string")
    if version != FORMAT:
        raise ValueError(f"field format is {shown(version)}; this version reads {FORMAT!r}")
    program = _parse_program(root["program"])
    family = dict(root["family"].expect(dict, "an object"))
    params = {name: _parse_param(_Node(value, f"family.params.{name}")) for name, value in _params(root).items()}
    family.pop("params", None)
    if "name" in family:
        root["family"]["name"].expect(str, "a string")
    return SolverFile(program, family, params, dict(root["provenance"].expect(dict, "an object")))


def _params(root: _Node) -> dict[str, Any]:
    return root["family"]["params"].expect(dict, "an object")


def _parse_param(node: _Node) -> Tensor:
    try:
        value = torch.tensor(node.value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"field {node.name} is not an array of numbers") from None
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"field {node.name} has a number that is not finite")
    return value


def _parse_program(node: _Node) -> SolverProgram:
    nfe, inputs = node["nfe"].integer(), node["inputs"].integer()
    evaluations, readouts = node["evaluations"].items(), node["readouts"].items()
    if inputs != 1:
        raise ValueError(f"field program.inputs is {inputs}; a solver file has exactly 1 input, the noise")
    if len(evaluations) != nfe:
        raise ValueError(f"field program.evaluations has {len(evaluations)} rows but program.nfe is {nfe}")
    rows = evaluations + readouts
    told = [row["told"].numbers(2) for row in evaluations]
    table = {
        "A": [row["A"].numbers(inputs) for row in rows],
        "B": [row["B"].numbers(nfe) for row in rows],
        "mask": [row["mask"].numbers(inputs + nfe) for row in rows],
        "level": [row["level"].numbers(2) for row in rows],
    }
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in table.items()}
    if bool(((tensors["mask"] != 0) & (tensors["mask"] != 1)).any()):
        raise ValueError("field program mask holds a number other than 0 and 1")
    stages = tuple(tuple(k.integer() for k in stage.items()) for stage in node["stages"].items())
    if node["depth"].integer() != len(stages):
        raise ValueError(f"field program.depth is {node['depth'].value} but program.stages has {len(stages)}")
    pairs = torch.tensor(told, dtype=torch.float64).reshape(nfe, 2)
    tensors["B"] = tensors["B"].reshape(len(rows), nfe)
    tensors["mask"] = tensors["mask"].bool()
    try:
        return SolverProgram(alpha=pairs[:, 0].clone(), sigma=pairs[:, 1].clone(), stages=stages, **tensors)
    except ValueError as error:
        raise ValueError(f"field program is {error}") from None
