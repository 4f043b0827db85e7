"""The layer check itself: every rule finds a violation planted in a small tree, and a tree that keeps them passes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import layers  # noqa: E402

TREE = {
    "__init__": "from solverdistill.programs.playing import play",
    "__main__": "from solverdistill.commands.main import main",
    "version": "",
    "support.files": "",
    "programs.playing": "from solverdistill.support import files\n\ndef play(): ...",
    "families.base": "from ..programs import playing",
    "teachers.mixture": "",
    "consumers.diffusers": "import diffusers",
    "consumers.hub": "def push():\n    from solverdistill.consumers import diffusers",
    "fits.gradient.module": "import lightning",
    "training.run": "import hydra\nfrom omegaconf import OmegaConf\nimport solverdistill.fits.gradient.module",
    "commands.main": "from solverdistill.training.run import run\n\ndef main(): ...",
}


def plant(root: Path, changes: dict[str, str] | None = None) -> list[str]:
    """What the check says of the tree with some modules changed or added."""
    for name, text in {**TREE, **(changes or {})}.items():
        path = root / "solverdistill" / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for folder in [folder for folder in path.parents if root in folder.parents]:
            (folder / "__init__.py").touch()
    return layers.check(root)


def test_a_tree_that_keeps_the_rules_passes(tmp_path: Path) -> None:
    assert plant(tmp_path) == []
    assert layers.check(tmp_path / "nowhere") == [f"{tmp_path}/nowhere/solverdistill holds no modules"]


LAZY = "def late():\n    {}"
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}"


@pytest.mark.parametrize("where", ["{}", LAZY, TYPES], ids=["top", "lazy", "types"])
@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("programs.merging", "from solverdistill.families.base import Family", "families.base, which lies above it"),
        ("programs.merging", "from ..families import base", "families.base, which lies above it"),
        ("families.base", "import solverdistill.teachers.mixture", "teachers.mixture, a folder beside its own"),
        ("support.progress", "from solverdistill import play", "the facade solverdistill; name the module"),
        ("families.base", "import solverdistill", "the facade solverdistill; name the module"),
        ("references.serving", "import lightning", "lightning, which only fits.gradient, references.datamodule,"),
        ("fits.report", "from lightning import Trainer", "lightning, which only fits.gradient,"),
        ("fits.gradients", "import lightning.pytorch", "lightning, which only fits.gradient,"),
        ("fits.gradient.module", "import hydra.utils", "hydra, which only training, commands may"),
        ("evaluation.plan", "from omegaconf import OmegaConf", "omegaconf, which only training, commands may"),
        ("consumers.hub", "import diffusers", "diffusers, which only consumers.diffusers, teachers.diffusers may"),
    ],
)
def test_an_import_against_the_rules_is_found(tmp_path: Path, module: str, line: str, problem: str, where: str) -> None:
    (found,) = plant(tmp_path, {module: where.format(line)})
    place, _, what = found.partition(" imports ")
    path, number = place.rsplit(":", 1)
    assert path == f"solverdistill/{module.replace('.', '/')}.py" and what.startswith(problem)
    assert number == str(where.count("\n") + 1)


@pytest.mark.parametrize(
    ("module", "name"),
    [("teachers.diffusers", "diffusers"), ("teachers.diffusers", "transformers"), ("consumers.hub", "huggingface_hub")],
)
def test_a_library_that_is_imported_before_it_is_used_is_found(tmp_path: Path, module: str, name: str) -> None:
    for where in (LAZY, TYPES):
        assert plant(tmp_path, {module: where.format(f"import {name}")}) == []
    for line in (f"import {name}", f"try:\n    from {name} import it\nexcept ImportError:\n    it = None"):
        (found,) = plant(tmp_path, {module: line})
        assert found.endswith(f" imports {name} at its top; import it where it is used")


@pytest.mark.parametrize("first", ["{}", LAZY, TYPES], ids=["top", "lazy", "types"])
@pytest.mark.parametrize("second", ["{}", LAZY, TYPES], ids=["top", "lazy", "types"])
def test_a_circle_is_found_however_its_imports_stand(tmp_path: Path, first: str, second: str) -> None:
    circle = {
        "families.a": first.format("from solverdistill.families import b"),
        "families.b": second.format("from solverdistill.families.c import there"),
        "families.c": "def there():\n    import solverdistill.families.a",
    }
    assert plant(tmp_path, circle) == ["circle: families.a <-> families.b <-> families.c"]


def test_a_circle_through_the_folder_itself_is_found(tmp_path: Path) -> None:
    inner = LAZY.format("from solverdistill.families import known")
    outer = "from solverdistill.families.own import late\nknown = 1"
    found = plant(tmp_path, {"families.__init__": outer, "families.own": inner})
    assert found == ["circle: families <-> families.own"]


def test_what_public_names_load_is_light(tmp_path: Path) -> None:
    assert plant(tmp_path, {"support.files": LAZY.format("import scipy")}) == []
    found = plant(tmp_path, {"support.files": "import scipy.linalg"})
    assert found == ["a public name of solverdistill loads scipy, through support.files"]


def test_a_module_in_the_root_is_found(tmp_path: Path) -> None:
    found = plant(tmp_path, {"zoo": ""})
    assert found == ["solverdistill/zoo.py lies in the root; every module has a folder"]
    with pytest.raises(SystemExit, match="solverdistill/helpers has no layer: give it one in layers.py"):
        plant(tmp_path, {"helpers": "from solverdistill.support import files"})


def test_an_import_of_what_does_not_exist_is_found(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"families/base.py:1 imports solverdistill.nothing, which does not exist"):
        plant(tmp_path, {"families.base": "from solverdistill.nothing import it"})
