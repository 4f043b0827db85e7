"""DSS tables (NeuralSolver): step sizes and coefficients, from JSON or from the dictionaries in the published source.

The source is parsed and never run: only literal lists under `timedeltas` and `coeffs` are read. Flow tables begin at
pure noise and run the sum of their step sizes, which four decimals leave between 0.9999 and 1.0002; where it exceeds 1
the steps are divided by it, so that the solver does not pass clean data. VP tables begin at 0.999 and stop at 1e-3.
"""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from solverdistill import families
from solverdistill.families.learned.dss import published_params
from solverdistill.importers.imported import Imported, Settings, Source, make_imported
from solverdistill.importers.known_models import MODELS, Model, find_model
from solverdistill.noise.levels import float64

SOURCE = Source("dss", "MCG-NJU/NeuralSolver", "Wang et al., ICML 2025, arXiv 2505.21114")
SETS = {"FM_DATA": "flowdcn", "FM_DATA_DCN": "flowdcn", "FM_DATA_SIT": "sit", "DDPM_DATA": "dit"}
VP_START, VP_FLOOR = 0.999, 1e-3
MAX_SOURCE = 250_000  # bytes; a syntax tree takes hundreds of times the room of its text
Tables = dict[str, dict[str, dict[str, Any]]]  # set -> "step5" -> {"timedeltas", "coeffs"}


def tables_of_source(path: str | os.PathLike[str]) -> Tables:
    """Literal tables in a Python file, by the name they are assigned to; empty where there are none."""
    if Path(path).stat().st_size > MAX_SOURCE:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the style of the source
            tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError, MemoryError):
        return {}
    found: Tables = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            tables = {name: _literals(value) for name, value in _entries(node.value).items()}
            tables = {name: table for name, table in tables.items() if table}
            if tables:
                found[node.targets[0].id] = tables
    return found


def tables_of_json(document: Any, nested: bool = True) -> Tables:
    """Tables of a JSON document: one of them, or several under names such as step5; empty where there are none."""
    if not isinstance(document, dict):
        return {}
    if _is_table(document):
        return {"": {f"step{len(document['timedeltas'])}": document}}
    tables = {name: value for name, value in document.items() if _is_table(value)}
    if tables:
        return {"": tables}
    named = {name: tables_of_json(value, False).get("", {}) for name, value in document.items()} if nested else {}
    return {name: value for name, value in named.items() if value}


def import_dss(path: str | os.PathLike[str], found: Tables, settings: Settings) -> Imported:
    """Read one table as the family `dss`: the set of `settings.model`, the table of `settings.steps`."""
    set_name, model = _choose_set(path, found, settings)
    tables = found[set_name]
    wanted = f"step{settings.steps}" if settings.steps is not None else next(iter(tables))
    if (settings.steps is None and len(tables) > 1) or wanted not in tables:
        raise ValueError(
            f"file {path} has tables {', '.join(tables)[:300]}; give steps, for example steps={wanted[4:]}"
        )
    try:
        sizes, coefficients = (float64(tables[wanted][name]) for name in ("timedeltas", "coeffs"))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"table {wanted} of file {path} is not made of numbers") from None
    params = published_params(sizes, coefficients)
    total, steps, remarks = sizes.sum().item(), len(sizes), []
    options: dict[str, Any] = {}
    if model.flow:
        ends = (1.0, max(1.0 - total, 0.0))
        if total > 1:
            remarks.append(f"step sizes add up to {total:.4f} as printed and are divided by it")
    else:
        ends, options = (VP_START, VP_START - total), {"time_floor": VP_FLOOR}
    grid = settings.grid or torch.linspace(*ends, steps + 1, dtype=torch.float64).tolist()
    family = families.build("dss", list(grid), "flow" if model.flow else "vp", **options)
    return make_imported(path, SOURCE, model, family, params, remarks)


def _choose_set(path: str | os.PathLike[str], found: Tables, settings: Settings) -> tuple[str, Model]:
    model = None if settings.model is None else find_model(settings.model)
    if len(found) == 1:
        name = next(iter(found))
        if model is None and name not in SETS:
            raise ValueError(f"file {path} does not say what it was searched on; give model=flowdcn, sit or dit")
        return name, model or MODELS[SETS[name]]
    for name in found:
        if model is not None and model is MODELS.get(SETS.get(name, "")):
            return name, model
    known = ", ".join(f"{SETS.get(name, '?')} ({name})" for name in found)
    raise ValueError(f"file {path} has several sets of tables; give the model of one of them: {known[:300]}")


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("timedeltas"), list) and "coeffs" in value


def _entries(node: ast.expr) -> dict[str, ast.expr]:
    """Entries of `dict(name=...)` or of `{"name": ...}`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {k.value: v for k, v in pairs if isinstance(k, ast.Constant) and isinstance(k.value, str)}
    return {}


def _literals(node: ast.expr) -> dict[str, Any]:
    entries = _entries(node)
    if not {"timedeltas", "coeffs"} <= set(entries):
        return {}
    try:
        return {name: ast.literal_eval(entries[name]) for name in ("timedeltas", "coeffs")}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return {}
