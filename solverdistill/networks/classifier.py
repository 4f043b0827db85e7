"""A small convolutional classifier of the 8x8 digits, whose features measure samples of the digits teacher."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class DigitClassifier(nn.Module):
    """Three convolutions, a feature layer and a linear read-out.

    The features are what a Frechet distance between digit samples is computed on; keeping them few (``num_features``)
    lets 1,797 images determine their covariance.

    Args:
        num_classes: Number of logits.
        num_features: Width of the feature layer.
        dropout: Probability of zeroing a feature before the read-out, in training mode.
    """

    def __init__(self, num_classes: int = 10, num_features: int = 48, dropout: float = 0.2) -> None:
        super().__init__()
        self.num_features = num_features
        self.conv = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, padding=1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.project = nn.Linear(64 * 2 * 2, num_features)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Features before the read-out.

        Args:
            x: Images in [-1, 1]. Shape: (batch, 1, 8, 8).
        Returns:
            Smooth (SiLU) features. Shape: (batch, num_features).
        """
        return F.silu(self.project(self.conv(x).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits. Shape: (batch, 1, 8, 8) to (batch, num_classes)."""
        return self.head(self.dropout(self.features(x)))
