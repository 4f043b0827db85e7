"""Lists of steps: what AYS, OSS and GITS publish, and any schedule that somebody wrote down.

A list is read as

* noise levels in EDM units where the first is above 1 and falls,
* flow times where it begins at 1 or below,
* timesteps of a discrete schedule (0 to 999) where all are whole numbers, the first above 1, and the model is a
  discrete one,
* indices into the uniform grid of a teacher of `nodes` steps where they rise (OSS).

Published lists of levels leave the final 0 out or carry it; lists of timesteps and of flow times get one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from solverdistill import families
from solverdistill.importers.imported import MAX_STEPS, Imported, Settings, Source, make_imported
from solverdistill.importers.known_models import Model, find_model
from solverdistill.noise.paths import make_path
from solverdistill.support.json_files import parse_json

SOURCE = Source("list of steps", "a list of steps", "AYS, OSS, GITS or another schedule")
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
MAX_BYTES = 100_000


def numbers_of(path: str | os.PathLike[str]) -> list[float] | None:
    """Numbers of a text or JSON list, or None where the file is none."""
    if Path(path).stat().st_size > MAX_BYTES:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    words = " ".join(line.split("#")[0] for line in text.splitlines()).replace(",", " ").replace(";", " ").split()
    if words and all(NUMBER.fullmatch(word) for word in words):
        return [float(word) for word in words]
    return _json_list(text)


def import_list(path: str | os.PathLike[str], numbers: Sequence[float], settings: Settings) -> Imported:
    """Put a classical solver on the levels of a list; `settings.solver` names it, euler otherwise."""
    if not 2 <= len(numbers) <= MAX_STEPS:
        raise ValueError(f"file {path} holds {len(numbers)} numbers; a list of steps needs at least 2, and few")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"file {path} holds a number that is not finite")
    model = None if settings.model is None else find_model(settings.model)
    levels, on_path, remarks = _levels(path, list(numbers), model, settings)
    name = settings.solver or "euler"
    if settings.solver is None:
        remarks.append("a list of steps names no solver; euler is taken, give solver for another")
    options = settings.options_of(("variant", "predict_x0"))
    if settings.order is not None:
        known = families.ROSTER[name].__dataclass_fields__ if name in families.ROSTER else {}
        options["order" if "order" in known else "max_order"] = settings.order
    family = families.build(name, levels, on_path, **options)
    return make_imported(path, SOURCE, model, family, {}, remarks)


def _levels(
    path: str | os.PathLike[str], numbers: list[float], model: Model | None, settings: Settings
) -> tuple[list[float], str, list[str]]:
    if all(a < b for a, b in pairwise(numbers)):
        return _of_indices(path, numbers, settings.nodes), "flow", ["indices into a uniform grid of flow times"]
    while len(numbers) > 2 and numbers[-1] == numbers[-2] == 0:
        numbers.pop()
    whole = all(number == int(number) for number in numbers)
    if whole and numbers[0] > 1 and model is not None and model.path["name"] == "discrete":
        schedule = make_path(model.path)
        count = 1000
        if not 0 <= numbers[-1] <= numbers[0] < count:
            raise ValueError(f"file {path} has timesteps from {numbers[0]:g} to {numbers[-1]:g}, not within 0 to 999")
        return [float(schedule.clock((n + 1) / count)) for n in numbers] + [0.0], "edm", ["timesteps of the schedule"]
    flow = model.flow if model is not None else numbers[0] <= 1
    if flow and numbers[-1] != 0:
        numbers = [*numbers, 0.0]
    return numbers, "flow" if flow else "edm", ["flow times" if flow else "noise levels in EDM units"]


def _of_indices(path: str | os.PathLike[str], numbers: list[float], nodes: int | None) -> list[float]:
    if nodes is None:
        raise ValueError(f"file {path} holds rising numbers, indices into a teacher's grid; give its steps as nodes")
    if any(n != int(n) for n in numbers) or not 0 <= numbers[0] < numbers[-1] <= nodes:
        raise ValueError(f"file {path} holds indices that are no whole numbers between 0 and {nodes}")
    levels = [n / nodes for n in reversed(numbers)]
    return levels if levels[-1] == 0 else [*levels, 0.0]


def _json_list(text: str) -> list[float] | None:
    try:
        document = parse_json(text)
    except ValueError:
        return None
    if isinstance(document, dict):
        lists = [document[name] for name in ("sigmas", "timesteps", "steps", "grid") if name in document]
        document = lists[0] if lists else None
    plain = isinstance(document, list) and all(type(item) in (int, float) for item in document)
    try:
        return [float(item) for item in document or []] if plain else None
    except OverflowError:
        return None
