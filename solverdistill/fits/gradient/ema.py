"""Exponential moving average of params, with the usual warm-up of its decay."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(params: nn.Module, decay: float) -> AveragedModel:
    """An average that `update_parameters(params)` moves:  average <- average - (1 - d_k) (average - value).

    d_k = min(decay, (1 + k) / (10 + k)) of the k-th update, so the first updates follow the params closely. The average
    lies in `module`; it starts from the params as they are, on their device, and takes no gradients.

    Raises:
        ValueError: the decay is not in [0, 1].
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay of the moving average must lie in [0, 1], not {decay}")

    def move(average: Tensor, value: Tensor, updates: Tensor | int) -> Tensor:
        k = int(updates)
        return average.lerp(value, 1 - min(decay, (1 + k) / (10 + k)))

    average = AveragedModel(params, avg_fn=move).requires_grad_(False)
    restart(average, params)
    return average


def restart(average: AveragedModel, params: nn.Module) -> None:
    """Set an average to the params, as if it had never been updated."""
    average.n_averaged.zero_()
    average.update_parameters(params)  # the first call copies
