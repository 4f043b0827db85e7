"""LD3 checkpoints: `params1`, `params2`, and the times they give, `best_t_steps`: the solver's, then the network's.

They say neither which solver the times were learned for nor on which schedule. Times that begin above 1 are noise
levels of an EDM network (the "lambda" mode), others are times of a discrete schedule. The times serve as a check:
params that do not give them belong to another grid, or have been changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from solverdistill import families
from solverdistill.families.learned.ld3 import LD3
from solverdistill.importers.imported import Imported, Settings, Source, make_imported
from solverdistill.importers.known_models import MODELS
from solverdistill.support.arrays import float64_tensors

SOURCE = Source("ld3", "vinhsuhi/LD3", "Tong et al., ICLR 2025, arXiv 2405.15506")
KEYS = ("params1", "params2", "best_t_steps")
SINGLE = 2e-4  # relative; what single precision leaves of times that are made through logarithms


def import_ld3(path: str | os.PathLike[str], document: Mapping[str, Any], settings: Settings) -> Imported:
    """Read a checkpoint as the family `ld3` on the solver that `settings` names."""
    if not all(isinstance(document[name], Tensor) and document[name].ndim == 1 for name in KEYS):
        raise ValueError(f"file {path} holds params or times that are no vectors")
    params1, params2, times = float64_tensors(path, {name: document[name] for name in KEYS}).values()
    count = len(params1)
    if len(params2) != count or len(times) != 2 * count:
        raise ValueError(f"file {path} has {count} params1, {len(params2)} params2 and {len(times)} times")
    if settings.solver is None:
        raise ValueError(f"file {path} does not say which solver its times are for; give solver=ipndm, dpmpp or unipc")
    solver_times, told = times[:count], times[count:]
    model = settings.find_model(None, path) if settings.model else MODELS["cifar10" if times[0] > 1 else "sd15"]
    options = settings.options_of(("order", "variant", "predict_x0"))
    on_path = "edm" if bool(times[0] > 1) else model.path
    grid = settings.grid or solver_times.tolist()
    family = families.build("ld3", list(grid), on_path, base=settings.solver, **options)
    params = {"params1": params1, "params2": params2}
    _check_times(path, family, params, solver_times, told)
    remarks = [f"the file does not say its solver or model; taken as {settings.solver} on {model.title}"]
    return make_imported(path, SOURCE, model, family, params, remarks)


def _check_times(
    file: str | os.PathLike[str], family: Any, params: dict[str, Tensor], solver_times: Tensor, told: Tensor
) -> None:
    if not isinstance(family, LD3):
        raise TypeError(f"expected the family ld3, not {type(family).__name__}")
    timeline = family.prepare(params)
    path = family.path
    network = torch.stack([path.from_clock(path.clock_of(timeline.told(i))) for i in range(len(told) - 1)])
    for name, ours, theirs in (("solver", timeline.s, solver_times), ("network", network, told[:-1])):
        worst = float((ours / theirs - 1).abs().max())
        if not worst <= SINGLE:
            raise ValueError(f"file {file} has params that do not give its {name} times: they differ by {worst:.1e}")
