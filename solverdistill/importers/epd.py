"""EPD predictors of both published code bases, and AdaSDE, whose deterministic part is an EPD solver.

The files hold raw values: r = sigmoid, weights = softmax, scales a and b = 1 - c + 2 c sigmoid(p / 2) with the ranges c
beside them, which is this package's `epd` as it stands. A range of 0 switches its scale off and leaves random values in
the file. AdaSDE has 1 + c tanh(p / 2) = 1 - c + 2 c sigmoid(p), so its raw scales are doubled, and c is at most 0.99.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from solverdistill import families
from solverdistill.families.base import Params
from solverdistill.importers.imported import MAX_STEPS, Imported, Settings, Source, make_imported
from solverdistill.importers.known_models import Model
from solverdistill.importers.levels import published_levels
from solverdistill.importers.predictor_files import Predictor
from solverdistill.support.arrays import read_npz
from solverdistill.support.facts import Facts
from solverdistill.support.limits import shown

EPD = Source("epd", "BeierZhu/EPD", "Zhu et al., ICCV 2025, arXiv 2507.14797")
EPD_RL = Source("epd (reward-tuned)", "BeierZhu/EPD", "EPD-Solver++, TPAMI 2026, arXiv 2512.22796")
ADASDE = Source("adasde", "Westlake-AGI-Lab/AdaSDE", "AdaSDE, NeurIPS 2025, arXiv 2510.23285")
TENSORS = ("r_params", "scale_dir_params", "scale_time_params", "weight_s")
STUDENTS = {"epd": "epd", "ipndm": "epd_ipndm", "adasde": "epd"}
MAX_POINTS = 64
LEFT_HIGH = "the sample is left at the last positive flow time, as published, and not taken to 0"
DETERMINISTIC = "only the deterministic part of AdaSDE, without its noise (gamma): the published FID does not apply"


def import_epd(path: str | os.PathLike[str], predictor: Predictor, settings: Settings) -> Imported:
    """Read an `EPD_predictor` as the family `epd`, or `epd_ipndm` for the plug-in."""
    facts = predictor.facts
    shape = (facts.count("num_steps", 2) - 1, facts.count("num_points", 1, MAX_POINTS))
    params = {name: predictor.tensor(name, *shape) for name in TENSORS}
    source = EPD_RL if "backend" in facts.values else EPD
    return _make(path, source, facts, params, settings, fcn=facts.flag("fcn", False))


def import_adasde(path: str | os.PathLike[str], predictor: Predictor, settings: Settings) -> Imported:
    """Read the deterministic part of an `adasde_predictor` as the family `epd`."""
    facts = predictor.facts
    shape = (facts.count("num_steps", 2) - 1, facts.count("num_points", 1, MAX_POINTS))
    params = {name: predictor.tensor(name, *shape) for name in TENSORS}
    for name in ("scale_dir_params", "scale_time_params"):
        params[name] = 2 * params[name]
    ranges = {name: min(facts.number(name), 0.99) for name in ("scale_dir", "scale_time")}
    facts = Facts(facts.file, {**facts.values, **ranges})
    return _make(path, ADASDE, facts, params, settings, fcn=facts.flag("fcn", False), remarks=[DETERMINISTIC])


def import_epd_arrays(path: str | os.PathLike[str], settings: Settings) -> Imported | None:
    """Read the .npz of effective values with which the reward-tuned code can start, or None where it is none."""
    held = read_npz(path)
    tables = {name: array for name, array in held.items() if array.ndim == 2 and array.dtype.kind == "f"}
    values = {name: torch.from_numpy(array.astype("f8")) for name, array in tables.items()}
    facts = {name: array.item() for name, array in held.items() if array.ndim == 0}
    if not {"r", "weight"} <= set(values):
        return None
    r, scales = values["r"], {name: values.get(name) for name in ("scale_dir", "scale_time")}
    if any(value is not None and value.shape != r.shape for value in (values["weight"], *scales.values())):
        raise ValueError(f"file {path} has r, weight and scales of different shapes")
    if not 1 <= r.shape[0] < MAX_STEPS or not 1 <= r.shape[1] <= MAX_POINTS:
        raise ValueError(f"file {path} has r of shape {tuple(r.shape)}, which is no solver of few steps")
    facts = {"num_steps": r.shape[0] + 1, "num_points": r.shape[1], "sampler_stu": "epd", "afs": False, **facts}
    params = {"r_params": _logit(r), "weight_s": torch.log(values["weight"].clamp(min=1e-6))}
    for name, scale in scales.items():
        # The range is not stored; one that holds all values with some room keeps every raw value finite.
        reach = 0.0 if scale is None else 1.25 * float((scale - 1).abs().max())
        centred = torch.full_like(r, 0.5) if scale is None or not reach else (scale - 1 + reach) / (2 * reach)
        params[f"{name}_params"], facts[name] = 2 * _logit(centred), reach
    return _make(path, EPD_RL, Facts(str(path), facts), params, settings, fcn=False)


def _make(
    path: str | os.PathLike[str],
    source: Source,
    facts: Facts,
    params: Params,
    settings: Settings,
    fcn: bool,
    remarks: list[str] | None = None,
) -> Imported:
    student = facts.word("sampler_stu")
    if student not in STUDENTS:
        raise ValueError(f"file {path} holds the student {shown(student)}; known: {', '.join(STUDENTS)}")
    model = _model(facts, settings)
    options: dict[str, Any] = {"points": facts.integer("num_points"), "afs": facts.flag("afs"), "fcn": fcn}
    options |= {name: facts.number(name) for name in ("scale_dir", "scale_time")}
    if STUDENTS[student] == "epd_ipndm":
        options["max_order"] = facts.integer("max_order")
    kind, rho = facts.word("schedule_type", model.grid), facts.number("schedule_rho", 1.0)
    grid = settings.grid or published_levels(kind, facts.integer("num_steps"), model, rho)
    family = families.build(STUDENTS[student], list(grid), "flow" if model.flow else "edm", **options)
    remarks = [*(remarks or []), *([LEFT_HIGH] if model.flow else [])]
    return make_imported(path, source, model, family, params, remarks, facts.guidance)


def _model(facts: Facts, settings: Settings) -> Model:
    backend, told = facts.values.get("backend"), facts.values.get("dataset_name")
    told = backend if isinstance(backend, str) and backend in ("flux", "sd3") else told
    model = settings.find_model(told if isinstance(told, str) else None, facts.place)
    mu = settings.mu if settings.mu is not None else facts.values.get("flowmatch_mu")
    # Only models whose shift depends on the resolution take mu; the others write one all the same.
    if model.mu is None or mu is None:
        return model
    return replace(model, mu=Facts(facts.file, {"flowmatch_mu": mu}).number("flowmatch_mu"))


def _logit(probability: Tensor) -> Tensor:
    return torch.logit(probability.clamp(1e-6, 1 - 1e-6))
