"""The features that sets of images are compared on, and what the distances are called there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from solverdistill.denoisers.base import Teacher
from solverdistill.evaluation.metrics.cleanfid import CleanInception
from solverdistill.evaluation.pixels import to_pixels
from solverdistill.evaluation.real_images import ArrayImages
from solverdistill.objectives import features

FID = "fid"  # name of the Inception network that FID is defined by, among the extractors


class Features(nn.Module):
    """What distances between sets are measured on: a classifier's `features`, or the output of any other network.

    The network is put in evaluation mode while it is used and found afterwards as it was.

    Args:
        network: Maps images in [-1, 1], shape (batch, ...), to (batch, num_features) by its method `features`, or by
            being called where it has none.
    Attributes:
        num_features: Width of the features.
    Raises:
        ValueError: the network does not state `num_features`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        width = getattr(network, "num_features", None)
        if not isinstance(width, int):
            raise ValueError(f"{type(network).__name__} cannot serve as extractor: it has no integer `num_features`")
        self.network, self.num_features = network, width

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features in float64. Shape: (batch, num_features)."""
        extract = getattr(self.network, "features", None)
        weight = next(self.network.parameters(), images)
        images = images.to(device=weight.device, dtype=weight.dtype)
        training = self.network.training
        self.network.eval()
        try:
            own = extract if callable(extract) and not isinstance(extract, nn.Module) else self.network
            features = own(images)
        finally:
            self.network.train(training)
        assert isinstance(features, Tensor)
        return features.double()


@dataclass(frozen=True)
class FeatureSpace:
    """A feature network with the names of the distances that are measured on it.

    Args:
        network: The network.
        name: Name of the extractor.
        quantised: Whether images become 8-bit pixels first, as clean-fid's files do.
        own: Real images that come with it.
    """

    network: Features
    name: str
    quantised: bool
    own: ArrayImages | None = None

    @property
    def width(self) -> int:
        """Number of features."""
        return self.network.num_features

    @property
    def frechet(self) -> str:
        """What a Frechet distance on it is called: FID on FID's own network alone, FD(<extractor>) elsewhere."""
        return "FID" if isinstance(self.network.network, CleanInception) else f"FD({self.name})"

    @property
    def kernel(self) -> str:
        """What a kernel distance on it is called."""
        return "KID" if isinstance(self.network.network, CleanInception) else f"KD({self.name})"

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images in [-1, 1]. Shape: (batch, width), float64."""
        if self.quantised:
            images = to_pixels(images).float() / 127.5 - 1
        return self.network(images)


def open_space(
    extractor: str | nn.Module | None, backend: str, teacher: Teacher, device: torch.device | str = "cpu"
) -> FeatureSpace | None:
    """Load an extractor: "fid", a registered one, any network with `num_features`, or "auto", the teacher's own.

    Returns:
        Its features on `device`; None where there is to be none, or the teacher has none.
    Raises:
        ValueError: the extractor is unknown.
        FileNotFoundError: its weights are missing.
    """
    own: ArrayImages | None = None
    if extractor is None:
        return None
    if isinstance(extractor, nn.Module):
        network, name = extractor, str(getattr(extractor, "name", type(extractor).__name__))
    elif extractor == FID:
        network, name = CleanInception(), CleanInception.name
    else:
        if extractor != "auto" and extractor not in features.EXTRACTORS:
            known = ", ".join(("auto", FID, *features.EXTRACTORS))
            raise ValueError(f"extractor {extractor!r} is unknown; known: {known}, or a network by its _target_")
        found = features.for_teacher(teacher) if extractor == "auto" else features.extractor(extractor)
        if found is None:
            return None
        network, name = found.module, found.name
        own = None if found.real is None else ArrayImages(f"{found.name.split()[0]} data", found.real)
    space = Features(network.eval().requires_grad_(False).to(device))
    return FeatureSpace(space, name, backend == "cleanfid" and not isinstance(network, CleanInception), own)
