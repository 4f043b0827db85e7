"""Images from the states at the end of a pipeline's loop, by the pipeline itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solverdistill.teachers.diffusers.pipelines.replaying import Replay

FRAMES = 4  # of a video that are shown


def pictures_of(replay: Replay, states: Sequence[Tensor], row: int = 0) -> Tensor:
    """What a pipeline makes of its last states, of one sample: an image in [-1, 1]. Shape: (1, 3, height, width).

    The loop is run for one step whose result is replaced, which costs one evaluation. Of a video, `FRAMES` frames at
    even distances stand side by side. Gradients pass where the pipeline's decoder lets them.
    """
    result = replay.finish(row, states, "pt")
    for name in ("images", "frames", "videos"):
        if hasattr(result, name):
            result = getattr(result, name)
            break
    else:
        result = result[0]
    image = _as_tensor(result)
    if image.ndim == 5:  # (1, frames, channels, height, width)
        count = image.shape[1]
        chosen = [round(k * (count - 1) / max(min(FRAMES, count) - 1, 1)) for k in range(min(FRAMES, count))]
        image = torch.cat([image[:, k] for k in chosen], dim=-1)
    return 2 * image - 1


def _as_tensor(value: Any) -> Tensor:
    while isinstance(value, (list, tuple)):
        value = torch.stack(list(value)) if isinstance(value[0], Tensor) else value[0]
    return torch.as_tensor(value)
