"""Feature extractors: networks whose features measure samples, registered by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from solverdistill.denoiser import Teacher


@dataclass(frozen=True)
class Extractor:
    """A frozen feature network.

    Args:
        name: Name in tables: a Frechet distance on it is called FD(name).
        module: Maps images to features of shape (batch, num_features).
        real: Real images to compare with. Shape: (count, *image shape).
    """

    name: str
    module: nn.Module
    real: Tensor


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


EXTRACTORS: dict[str, Callable[[], Extractor]] = {"digits": digits}
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
