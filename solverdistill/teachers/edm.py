"""Teachers with an EDM preconditioning: D(y; sigma) with y = x_0 + sigma n."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher, per_sample
from solverdistill.networks.preconditioning import Preconditioned
from solverdistill.networks.song_unet import SongUNet
from solverdistill.noise.paths import EDM
from solverdistill.support.json_files import parse_json
from solverdistill.teachers.declared import check_declared


class EDMTeacher(Teacher):
    """A preconditioned network as a denoiser of any (alpha, sigma): D(x / alpha; sigma / alpha).

    Args:
        net: The preconditioned network.
        name: Name of the teacher.
        shape: Shape of one image, (channels, height, width).
        noise_range: Largest and smallest sigma to sample between.
        num_classes: Number of classes; a label of -1 means none and becomes a zero row.
    """

    def __init__(
        self,
        net: Preconditioned,
        name: str,
        shape: tuple[int, ...],
        noise_range: tuple[float, float] = (80.0, 0.002),
        num_classes: int = 0,
    ) -> None:
        super().__init__(name, shape, EDM(), noise_range, "denoised", num_classes)
        self.net = net
        self.freeze()

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        onehot = None
        if self.num_classes:
            label = torch.full((x.shape[0],), -1, device=x.device) if cond is None else cond
            classes = torch.arange(self.num_classes, device=x.device)
            onehot = (label[:, None] == classes).to(torch.float32)
        return self.net(x / per_sample(alpha, x), sigma / alpha, onehot)


def load_song_unet(path: str | os.PathLike[str]) -> Preconditioned:
    """Load a preconditioned SongUNet from a safetensors file whose metadata holds its configuration.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file's tensors do not belong to the network its metadata describes.
    """
    from safetensors import safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"network weights {path} do not exist")
    try:
        with safe_open(path, framework="pt") as stream:
            config = parse_json((stream.metadata() or {}).get("config", "null"))
            weights = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
        check_declared(Path(path), config["network"], lambda: SongUNet(**config["network"]))
        net = Preconditioned(SongUNet(**config["network"]), **config["preconditioning"])
        net.load_state_dict(weights)
    except Exception as error:  # a damaged file, or a configuration of anything, can raise anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"network weights {path} cannot be used: {reason}") from None
    return net
