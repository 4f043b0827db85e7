"""Feature extractors: networks whose features measure samples, registered by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from solverdistill.denoisers.base import Teacher
from solverdistill.support.pickles import read_torch


@dataclass(frozen=True)
class Extractor:
    """A frozen feature network.

    Args:
        name: Name in tables: a Frechet distance on it is called FD(name).
        module: Maps images to features of shape (batch, num_features).
        real: Real images to compare with, where they come with it. Shape: (count, *image shape).
    """

    name: str
    module: nn.Module
    real: Tensor | None


class _DigitFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from solverdistill.teachers.digits import digit_classifier

        self.classifier = digit_classifier()
        self.num_features = self.classifier.num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)


def digits() -> Extractor:
    """Features of the shipped digit classifier, against the 1,797 real digits."""
    from solverdistill.teachers.digits import digit_images

    return Extractor("digits classifier", _DigitFeatures(), digit_images()[0])


class _InceptionFeatures(nn.Module):
    """Pooled features of Inception v3 on images in [-1, 1], its own input range, enlarged to 299 pixels."""

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import Inception_V3_Weights, inception_v3

        path = inception_weights_path()
        if not path.is_file():
            url = Inception_V3_Weights.IMAGENET1K_V1.url
            what = f"{path.name} (104 MB)"
            raise FileNotFoundError(f"Inception features need {what}: download {url} and put it at {path}")
        network = inception_v3(weights=None, init_weights=False, aux_logits=True)
        network.load_state_dict(read_torch(path))
        setattr(network, "fc", nn.Identity())  # noqa: B010 (the features before the classes)
        self.network = network.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        images = x.float().clamp(-1, 1).expand(-1, 3, -1, -1)
        size = (299, 299)
        return self.network(nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False))


def inception_weights_path() -> Path:
    """Where torchvision's Inception weights are looked for."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"


def inception() -> Extractor:
    """torchvision's Inception v3, for feature losses; it is not the network that FID is defined by."""
    return Extractor("torchvision Inception v3", _InceptionFeatures(), None)


EXTRACTORS: dict[str, Callable[[], Extractor]] = {"digits": digits, "inception": inception}
OF_TEACHER = {"edm_digits": "digits", "digits_kde": "digits"}


def extractor(name: str) -> Extractor:
    """Load an extractor by name."""
    if name not in EXTRACTORS:
        raise ValueError(f"feature extractor {name!r} is unknown; known: {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]()


def for_teacher(teacher: Teacher) -> Extractor | None:
    """The extractor that belongs to a teacher's data, or None."""
    name = OF_TEACHER.get(teacher.name)
    return None if name is None else extractor(name)


def feature_network(name: str) -> nn.Module:
    """The network of an extractor alone, for feature losses in a configuration."""
    return extractor(name).module
