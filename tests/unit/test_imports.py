"""Who may import whom, and how light the package is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import layers  # noqa: E402

PACKAGE = ROOT / "solverdistill"
HEAVY = ("lightning", "hydra", "omegaconf", "diffusers", "transformers", "huggingface_hub", "wandb", "torchvision")
HEAVY += ("torchmetrics", "matplotlib")


def modules() -> dict[str, Path]:
    found = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def imports(path: Path, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_layers_hold() -> None:
    assert layers.check(ROOT) == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_diffusers_is_imported_when_used_and_only_by_its_own_modules(name: str) -> None:
    foreign = {"diffusers", "transformers", "huggingface_hub"}
    at_import = {imported.split(".")[0] for imported in imports(modules()[name], top_level_only=True)}
    assert not foreign & at_import or name == "solverdistill.consumers.diffusers"  # it is a class of that library
    if "diffusers" not in name:
        used = {imported.split(".")[0] for imported in imports(modules()[name], top_level_only=False)}
        assert not {"diffusers", "transformers"} & used


def test_import_is_light() -> None:
    code = f"import sys, solverdistill; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_nothing_runs_code_from_files() -> None:
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                assert (owner, node.func.attr) not in {("pickle", "load"), ("pickle", "loads")}, name
                if (owner, node.func.attr) == ("torch", "load"):
                    safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                    assert safe, f"{name} calls torch.load without weights_only=True"
