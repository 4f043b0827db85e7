"""Who may import whom, and how light the package is."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import solverdistill

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import layers  # noqa: E402

PACKAGE = ROOT / "solverdistill"
HEAVY = ("lightning", "hydra", "omegaconf", "diffusers", "transformers", "huggingface_hub", "wandb", "torchvision")
HEAVY += ("torchmetrics", "matplotlib")


def modules() -> dict[str, Path]:
    found = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def test_layers_hold() -> None:
    assert layers.check(ROOT) == []


def test_names_load_when_they_are_asked_for() -> None:
    watched = ("torch", "numpy", *HEAVY, *layers.HEAVY)
    code = f"""
import sys
loaded = lambda: {{name for name in {watched!r} if name in sys.modules}}
import solverdistill
print(loaded())
from solverdistill import load_solver, sample
load_solver("zoo:dss-sit-nfe5")
print(loaded() - {{"torch", "numpy"}})
names = {{}}
exec("from solverdistill import *", names)
print(set(solverdistill.__all__) - set(names) - set(dir(solverdistill)), loaded() & set({HEAVY!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split("\n") == ["set()", "set()", "set() set()", ""]


def test_every_public_name_is_the_one_that_type_checkers_see() -> None:
    seen = {}
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and all(alias.asname == alias.name for alias in node.names):
            seen |= {alias.name: node.module for alias in node.names}
    assert sorted(seen) == sorted(solverdistill.__all__)
    for name, module in seen.items():
        assert getattr(solverdistill, name) is getattr(importlib.import_module(str(module)), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        solverdistill.nothing  # noqa: B018


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
