"""DyWeight tables: the pixel and latent predictors, and the checkpoints of the FLUX variant."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from solverdistill import families
from solverdistill.families.learned.dyweight import DyWeight
from solverdistill.importers.imported import Imported, Settings, Source, make_imported
from solverdistill.importers.known_models import find_model
from solverdistill.importers.levels import published_levels, shifted
from solverdistill.importers.predictor_files import Predictor
from solverdistill.support.arrays import float64_tensors

SOURCE = Source("dyweight", "Westlake-AGI-Lab/DyWeight", "Zhao et al., 2026, arXiv 2603.11607")
FLUX_MU = 0.63  # 512 x 512 pixels, at which the authors train and sample
FLUX_KEYS = ("dyweight_weights_raw", "dyweight_t_scales", "window_size")


def import_dyweight(path: str | os.PathLike[str], predictor: Predictor, settings: Settings) -> Imported:
    """Read a `DyWeight_predictor` as the family `dyweight` on the edm path."""
    facts, remarks = predictor.facts, []
    count, afs = facts.count("num_steps", 2), facts.flag("afs")
    told = facts.values.get("dataset_name")
    model = settings.find_model(told if isinstance(told, str) else None, facts.place)
    if "schedule_type" not in facts.values and settings.grid is None:
        remarks.append(f"the file does not say its schedule; {model.grid}, the published recipe, is assumed")
    kind = facts.word("schedule_type", model.grid)
    rho = facts.number("schedule_rho", 1.0 if kind == "discrete" else 7.0)
    grid = settings.grid or published_levels(kind, count, model, rho)
    scaled = facts.flag("enable_t_scale_learning", True)
    history = facts.values.get("max_history_steps")
    family = families.build(
        "dyweight",
        list(grid),
        "edm",
        afs=afs,
        max_history=None if history is None else facts.integer("max_history_steps"),
        learn_time_scale=scaled,
    )
    params = {"hybrid_weights": predictor.tensor("hybrid_weights", count - 1, count - 1)}
    if scaled:
        params["t_scale"] = predictor.tensor("t_scale", count - 1 - afs)
    if "mask" in predictor.tensors:
        _check_mask(path, family, predictor.tensor("mask", count - 1, count - 1))
    return make_imported(path, SOURCE, model, family, params, remarks, facts.guidance)


def import_flux(path: str | os.PathLike[str], document: Mapping[str, Any], settings: Settings) -> Imported:
    """Read a checkpoint of the FLUX variant as the family `dyweight` on the flow path.

    Its factors are b = 0.5 + sigmoid(phi); the family's `t_scale` is b itself.
    """
    weights, scales, window = (document[name] for name in FLUX_KEYS)
    if isinstance(weights, Tensor) and isinstance(scales, Tensor):
        weights, scales = float64_tensors(path, {"weights": weights, "factors": scales}).values()
    if not all(isinstance(value, Tensor) and bool(torch.isfinite(value).all()) for value in (weights, scales)):
        raise ValueError(f"file {path} holds weights or factors that are no finite tensors")
    count = scales.numel()
    if count < 1 or scales.ndim != 1 or tuple(weights.shape) != (count, count) or not isinstance(window, int):
        raise ValueError(f"file {path} has weights of shape {tuple(weights.shape)} for {count} factors")
    model = find_model(settings.model or "flux")
    if model.mu is not None:
        model = replace(model, mu=FLUX_MU if settings.mu is None else settings.mu)
    times = [1.0 - i * (1.0 - 1.0 / count) / max(count - 1, 1) for i in range(count)]
    grid = settings.grid or [*shifted(times, model), 0.0]
    family = families.build(
        "dyweight", list(grid), "flow", max_history=window if window > 0 else None, keep_output=True
    )
    params = {"hybrid_weights": weights, "t_scale": scales}
    remarks = ["levels are those of 512x512 images (mu 0.63)"] if settings.mu is None and settings.grid is None else []
    return make_imported(path, SOURCE, model, family, params, remarks, guidance=3.5)


def _check_mask(path: str | os.PathLike[str], family: Any, mask: Tensor) -> None:
    if isinstance(family, DyWeight) and not torch.equal(mask.bool(), family.acting):
        raise ValueError(f"file {path} has a mask that is not the band of its max_history_steps; it has been changed")
