"""The 1,797 handwritten digits of scikit-learn, the real data set that needs no download.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, test
part, CC BY 4.0: 8x8 images whose pixels count the dark cells (0 to 16) of a 4x4 block.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from solverdistill.networks.classifier import DigitClassifier
from solverdistill.teachers.edm import EDMTeacher, load_song_unet
from solverdistill.teachers.mixture import Mixture

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


def weights_file(name: str) -> Path:
    """Path of a weights file that the package ships."""
    return Path(str(resources.files("solverdistill") / "teachers" / "weights" / name))


def edm_digits() -> EDMTeacher:
    """The shipped class-conditional network trained on the digits by scripts/train_teacher.py."""
    net = load_song_unet(weights_file("edm_digits.safetensors"))
    return EDMTeacher(net, "edm_digits", (1, 8, 8), num_classes=10)


def digits_kde(std: float = 0.15) -> Mixture:
    """The exact denoiser of the digits smoothed by Gaussian noise: real images in closed form, no training.

    Args:
        std: Standard deviation of the smoothing, in units of images in [-1, 1].
    """
    images, classes = digit_images()
    count = len(images)
    weights, stds = torch.full((count,), 1 / count), torch.full((count,), float(std))
    teacher = Mixture(images, weights, stds, classes, name="digits_kde")
    teacher.freeze()
    return teacher


def digit_classifier() -> DigitClassifier:
    """The shipped classifier, frozen; its features measure samples of the digits teachers."""
    from safetensors import safe_open

    with safe_open(weights_file("digits_classifier.safetensors"), framework="pt") as stream:
        config = json.loads(stream.metadata()["config"])
        weights = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
    classifier = DigitClassifier(**config["network"])
    classifier.load_state_dict(weights)
    return classifier.eval().requires_grad_(False)
