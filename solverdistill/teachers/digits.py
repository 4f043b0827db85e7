"""The 1,797 handwritten digits of scikit-learn, the real data set that needs no download.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, test
part, CC BY 4.0: 8x8 images whose pixels count the dark cells (0 to 16) of a 4x4 block.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_TRAIN = 1437
_SPLIT_SEED = 20221


def digit_images() -> tuple[Tensor, Tensor]:
    """Load all digits, in scikit-learn's order.

    Returns:
        Images, float32 in [-1, 1], shape (1797, 1, 8, 8), and their classes, int64, shape (1797,).
    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return images, torch.tensor(classes, dtype=torch.int64)


def digit_split() -> tuple[Tensor, Tensor]:
    """Indices of the fixed train (80 %) and held-out parts that the shipped weights were made with.

    Returns:
        Ascending disjoint indices of shapes (1437,) and (360,).
    """
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    return order[:NUM_TRAIN].sort().values, order[NUM_TRAIN:].sort().values
