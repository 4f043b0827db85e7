"""Frechet distance of sets of samples on any extractor, batch by batch, through torchmetrics.

The distance of two Gaussians fitted to the features, ``|mu - nu|^2 + tr(S + T - 2 (S T)^(1/2))``. It is called
FD(<extractor>); the name FID belongs to the Inception network of Heusel et al., "GANs Trained by a Two Time-Scale
Update Rule", NeurIPS 2017, alone. `evaluation.metrics.distribution` measures several such distances at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Features(nn.Module):
    """What a Frechet distance is measured on: the `features` of a classifier, or the output of any other network.

    Args:
        network: Maps images in [-1, 1], shape (batch, ...), to (batch, num_features) by its method `features`, or by
            being called where it has none.
    Attributes:
        num_features: Width of the features.
        label: "FD(<extractor>)", with the network's `name` or that of its class.
    Raises:
        ValueError: the network does not state `num_features`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        width = getattr(network, "num_features", None)
        if not isinstance(width, int):
            raise ValueError(f"{type(network).__name__} cannot serve as extractor: it has no integer `num_features`")
        self.network, self.num_features = network, width
        self.label = frechet_label(network)

    def forward(self, images: Tensor) -> Tensor:
        """Features in float64. Shape: (batch, num_features)."""
        extract = getattr(self.network, "features", None)
        weight = next(self.network.parameters(), images)
        images = images.to(device=weight.device, dtype=weight.dtype)
        features = extract(images) if callable(extract) and not isinstance(extract, nn.Module) else self.network(images)
        assert isinstance(features, Tensor)
        return features.double()


class FrechetDistance:
    """Frechet distance of batches of samples from a fixed set of real images, both seen batch by batch.

    The extractor is put in evaluation mode while it is used and found afterwards as it was.

    Args:
        extractor: A network as `Features` takes it.
        real: Real images in [-1, 1]. Shape: (images, ...).
        batch_size: Images per call of the extractor.
    Raises:
        ValueError: there are no more real images than features, so that their covariance is singular.
    """

    def __init__(self, extractor: nn.Module, real: Tensor, batch_size: int = 256) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.features = Features(extractor)
        _check_count("real images", len(real), self.features.num_features)
        self.batch_size, self.images = batch_size, 0
        self._metric = FrechetInceptionDistance(feature=self.features, normalize=True, reset_real_features=False)
        self._metric.to(next(extractor.parameters(), real).device)
        self._update(real, real=True)

    @property
    def label(self) -> str:
        """Name of the number: "FD(<extractor>)"."""
        return self.features.label

    def update(self, samples: Tensor) -> None:
        """Take in a batch of samples."""
        self._update(samples, real=False)
        self.images += len(samples)

    def compute(self) -> float:
        """The distance of the samples taken in so far.

        Raises:
            ValueError: there are no more of them than features.
        """
        _check_count("samples", self.images, self.features.num_features)
        # Rounding leaves tiny negative numbers for equal sets.
        return max(self._metric.compute().item(), 0.0)

    def reset(self) -> None:
        """Forget the samples and keep the real images."""
        self._metric.reset()
        self.images = 0

    @torch.no_grad()
    def _update(self, images: Tensor, real: bool) -> None:
        network = self.features.network
        training = network.training
        network.eval()
        try:
            for batch in images.split(self.batch_size):
                self._metric.update(batch, real=real)
        finally:
            network.train(training)


def frechet_distance(samples: Tensor, real: Tensor, extractor: nn.Module, batch_size: int = 256) -> float:
    """FD(<extractor>) between samples and real images.

    Args:
        samples: Images in [-1, 1]. Shape: (batch, ...).
        real: Real images in [-1, 1]. Shape: (images, ...).
        extractor: A network as `Features` takes it.
        batch_size: Images per call of the extractor.
    Returns:
        The squared distance, at least 0.
    Raises:
        ValueError: one of the sets has no more images than there are features.
    """
    distance = FrechetDistance(extractor, real, batch_size)
    distance.update(samples)
    return distance.compute()


def frechet_label(extractor: nn.Module) -> str:
    """Name under which a Frechet distance in the features of `extractor` is reported."""
    name = getattr(extractor, "name", None)
    return f"FD({name if isinstance(name, str) else type(extractor).__name__})"


def _check_count(what: str, count: int, width: int) -> None:
    if count <= width:
        raise ValueError(f"a Frechet distance on {width} features needs more than {width} {what}, not {count}")
