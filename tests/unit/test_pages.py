"""What the pages say about the code is so: names exist, numbers in drawings are the library's, snippets run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import solverdistill
from solverdistill import SolverProgram, families, load_solver
from tests.layers import LAYERS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FOLDERS = [folder for layer in LAYERS for folder in layer if (ROOT / "solverdistill" / folder / "__init__.py").exists()]


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def resolve(name: str) -> Any:
    """The object behind a dotted name below the package."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(["solverdistill", *parts[:k]]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"there is no {name}")


def test_every_name_of_the_architecture_exists() -> None:
    text = read("architecture.md")
    names = [name for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", text) if name.split(".")[0] in FOLDERS]
    assert len(names) > 20
    for name in names:
        resolve(name)
    paths = re.findall(r"`((?:\w+/)+\w+(?:\.py)?)`", text)
    assert "consumers/diffusers.py" in paths
    for path in paths:
        assert (ROOT / "solverdistill" / path.removeprefix("solverdistill/")).exists(), path


def test_the_architecture_has_every_folder() -> None:
    assert len(FOLDERS) > 12
    paragraphs = re.findall(r"^\*\*(\w+)\*\*", read("architecture.md"), re.M)
    assert paragraphs == FOLDERS  # lowest layer first, as the table of layers has them
    drawn = read("pictures/layers.svg")
    assert [folder for folder in FOLDERS if f">{folder}/<" not in drawn] == []


@pytest.mark.parametrize(
    ("drawing", "make"),
    [
        ("table.svg", lambda: families.build("euler", [4.0, 1.0, 0.25], path="edm").program({})),
        ("stages.svg", lambda: load_solver("zoo:epd-cifar10-nfe5")),
    ],
)
def test_the_numbers_in_a_drawing_are_those_of_the_program(drawing: str, make: Any) -> None:
    program: SolverProgram = make()
    table = torch.cat([program.A, program.B], dim=1)
    expected = [f"{value:.3f}" for value in table[program.mask].tolist()]  # row by row, without what is empty
    drawn = [text.replace("\u2212", "-") for text in re.findall(r">(\u2212?\d+\.\d{3})<", read(f"pictures/{drawing}"))]
    assert drawn == expected


def test_how_it_works_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", read("how-it-works.md"), re.M | re.S)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), "how-it-works.md", "exec"), {})


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    missing = [name for name in solverdistill.__all__ if not re.search(rf":: solverdistill\.{name}\b", pages)]
    assert missing == []


def test_the_reference_has_every_family() -> None:
    text = read("api/families.rst")
    for name, family in families.ROSTER.items():
        assert re.search(rf"automodule:: {family.__module__}\n   :members: .*\b{family.__name__}\b", text), name


def test_every_page_is_reached_from_the_index() -> None:
    listed = re.findall(r"^(?:.*<)?([\w/-]+)>?$", read("index.md"), re.M)
    pages = [str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")]
    assert sorted({*pages} - {"index", *listed}) == []
