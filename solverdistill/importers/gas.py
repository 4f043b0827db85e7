"""GS and GAS checkpoints: lists of numbers without names, times or schedule.

A checkpoint of N steps holds, in this order, `mu_logit` (N - 1), `t_couple` (N), and c1, a1, c2, a2, ... (N each); the
averaged ones are what its authors sample with. The last time and the noise schedule belong to the model: the VP process
from time 1 to 1e-3 or 1e-4 for EDM networks, the network's own discrete schedule for latent ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from solverdistill import families
from solverdistill.importers.imported import Imported, Settings, Source, make_imported
from solverdistill.support.arrays import float64_tensors

SOURCE = Source("gas", "3145tttt/GAS", "Oganov et al., ICLR 2026, arXiv 2510.17699")


def tensors_of(document: Any) -> list[Tensor] | None:
    """The tensors of a checkpoint in their order, averaged ones first choice; None where it is no such checkpoint."""
    candidates: list[Any] = [document]
    if isinstance(document, Mapping):
        average = document.get("ema")
        shadow = average.get("shadow_params") if isinstance(average, Mapping) else average
        candidates = [shadow, document.get("model"), list(document.values())]
    for candidate in candidates:
        if _looks_like(candidate):
            return list(candidate)
    return None


def import_gas(path: str | os.PathLike[str], tensors: Sequence[Tensor], settings: Settings) -> Imported:
    """Read the tensors of a checkpoint as the family `gas`."""
    model = settings.find_model(None, path)
    if model.t_eps is None:
        raise ValueError(f"GAS has no solver for {model.title}; give the model of file {path}, for example cifar10")
    tensors = list(float64_tensors(path, {f"tensor {i}": value for i, value in enumerate(tensors)}).values())
    if not all(bool(torch.isfinite(value).all()) for value in tensors):
        raise ValueError(f"file {path} holds a number that is not finite")
    steps, order = len(tensors[1]), (len(tensors) - 2) // 2
    on_path: dict[str, Any] = model.path if model.path["name"] == "discrete" else {"name": "vp"}
    grid = settings.grid or torch.linspace(1.0, model.t_eps, steps + 1, dtype=torch.float64).tolist()
    family = families.build("gas", list(grid), on_path, order=None if order == steps else order)
    names = ["mu_logit", "t_couple", *(f"{kind}{i + 1}_diff" for i in range(order) for kind in "ca")]
    params = dict(zip(names, tensors, strict=True))
    remarks = [f"the file holds neither schedule nor times; those of {model.title} down to {model.t_eps:g} are taken"]
    return make_imported(path, SOURCE, model, family, params, remarks)


def _looks_like(candidate: Any) -> bool:
    if not isinstance(candidate, (list, tuple)) or len(candidate) < 4 or len(candidate) % 2:
        return False
    if not all(isinstance(value, Tensor) and value.ndim == 1 for value in candidate):
        return False
    steps = len(candidate[1])
    rest_fits = all(len(value) == steps for value in candidate[2:])
    return len(candidate[0]) == steps - 1 and rest_fits and len(candidate) <= 2 + 2 * steps
