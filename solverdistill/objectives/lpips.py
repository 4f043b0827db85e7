"""LPIPS as a distance to train with, through torchmetrics; its backbone weights must lie in torch's hub cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Backbones of LPIPS: file name in the hub cache, size.
WEIGHTS = {
    "vgg": ("vgg16-397923af.pth", "528 MB"),
    "alex": ("alexnet-owt-7be5be79.pth", "233 MB"),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", "5 MB"),
}
SMALLEST = 64


class LPIPS:
    """Learned perceptual distance of images in [-1, 1], differentiable, one value per sample.

    Images are clipped to [-1, 1] (the network's range) and enlarged bilinearly to 64 pixels where they are smaller, one
    channel being repeated to three.
    Reference: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.

    Args:
        net: Backbone: "vgg", "alex" or "squeeze".
    Raises:
        ValueError: the backbone is unknown.
        FileNotFoundError: its weights are not in the cache; the message says from where and where to put them.
    """

    def __init__(self, net: str = "vgg") -> None:
        if net not in WEIGHTS:
            raise ValueError(f"LPIPS backbone {net!r} is unknown; known: {', '.join(WEIGHTS)}")
        self.net = net
        path = weights_path(net)
        if not path.is_file():
            name, size = WEIGHTS[net]
            url = f"https://download.pytorch.org/models/{name}"
            raise FileNotFoundError(f"LPIPS with {net} needs {name} ({size}): download {url} and put it at {path}")
        self._network: Any = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of every pair. Shape: (batch,)."""
        if self._network is None:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            metric = LearnedPerceptualImagePatchSimilarity(net_type=self.net)  # type: ignore[arg-type]
            self._network = metric.net.requires_grad_(False).eval()
        network = self._network.to(a.device)
        return network(_prepare(a), _prepare(b)).flatten()


def weights_path(net: str) -> Path:
    """Where the backbone's weights are looked for."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS[net][0]


def _prepare(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"LPIPS compares images of 1 or 3 channels, not tensors of shape {tuple(images.shape)}")
    images = images.float().clamp(-1, 1).expand(-1, 3, -1, -1)
    size = max(SMALLEST, images.shape[2]), max(SMALLEST, images.shape[3])
    if size != tuple(images.shape[2:]):
        images = torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return images
