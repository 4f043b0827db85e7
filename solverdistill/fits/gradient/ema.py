"""Exponential moving average of params, with the usual warm-up of its decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class EMA:
    """Running average  average <- average - (1 - d_k) (average - value),  d_k = min(decay, (1 + k) / (10 + k)).

    k counts the updates from 1, so the first updates follow the params closely. Averages are held in the dtype and on
    the device of the values.

    Args:
        values: Named tensors to start from; copied.
        decay: Final decay.
        warm_up: Use the smaller decay of the first updates; otherwise `decay` from the start.
    """

    def __init__(self, values: Mapping[str, Tensor], decay: float = 0.999, warm_up: bool = True) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay of the moving average must lie in [0, 1], not {decay}")
        self.decay, self.warm_up, self.updates = decay, warm_up, 0
        self.average = {name: value.detach().clone() for name, value in values.items()}

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """Take one step towards `values`, which have the names of the start."""
        if set(values) != set(self.average):
            raise ValueError(f"the moving average holds {sorted(self.average)}, not {sorted(values)}")
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.decay
        for name, value in values.items():
            self.average[name].lerp_(value.detach(), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Averages and the number of updates, for a checkpoint."""
        return {"updates": self.updates, "average": {name: value.clone() for name, value in self.average.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if set(state["average"]) != set(self.average):
            raise ValueError(f"the moving average holds {sorted(self.average)}, not {sorted(state['average'])}")
        self.updates = int(state["updates"])
        self.average = {name: value.detach().clone() for name, value in state["average"].items()}
