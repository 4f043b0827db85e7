"""The shipped weights: small, complete, and as good as stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import solverdistill.teachers
from solverdistill.networks import DigitClassifier, Preconditioned, SongUNet

WEIGHTS = Path(solverdistill.teachers.__file__).parent / "weights"
TEACHER = WEIGHTS / "edm_digits.safetensors"
CLASSIFIER = WEIGHTS / "digits_classifier.safetensors"

# Root-mean-square error per pixel of one denoising step on the held-out digits, with the noise of `one_step_error`:
# noise level, bound with labels, bound without. The best linear denoiser (from mean and covariance of the train part)
# makes 0.045, 0.150, 0.279, 0.390, 0.477, 0.527, 0.538 and 0.539 at these levels.
ERRORS = [
    (0.05, 0.038, 0.038),
    (0.2, 0.117, 0.118),
    (0.5, 0.213, 0.218),
    (1.0, 0.302, 0.342),
    (2.0, 0.376, 0.474),
    (5.0, 0.419, 0.536),
    (20.0, 0.427, 0.549),
    (80.0, 0.430, 0.551),
]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a weights file."""
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    return config, load_file(path)


@pytest.fixture(scope="module")
def teacher() -> Preconditioned:
    config, tensors = read(TEACHER)
    denoiser = Preconditioned(SongUNet(**config["network"]), **config["preconditioning"])
    denoiser.load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    config, tensors = read(CLASSIFIER)
    model = DigitClassifier(**config["network"])
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def held_out() -> tuple[Tensor, Tensor]:
    pytest.importorskip("sklearn")
    from solverdistill.teachers.digits import digit_images, digit_split

    images, classes = digit_images()
    indices = digit_split()[1]
    return images[indices], classes[indices]


def one_step_error(teacher: Preconditioned, images: Tensor, sigma: float, labels: Tensor | None) -> float:
    """Root-mean-square error per pixel of denoising ``images`` plus noise of level ``sigma``."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    estimate = teacher(images + sigma * noise, torch.full((len(images),), sigma), labels)
    return (estimate - images).square().mean().sqrt().item()


def test_sizes() -> None:
    assert TEACHER.stat().st_size <= 3_000_000
    assert CLASSIFIER.stat().st_size <= 300_000


def test_teacher_file_holds_finite_float32_under_the_wrapper_prefix() -> None:
    _, tensors = read(TEACHER)
    assert all(name.startswith("model.") for name in tensors)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())


def test_images_and_split() -> None:
    pytest.importorskip("sklearn")
    from solverdistill.teachers.digits import digit_images, digit_split

    images, classes = digit_images()
    train, rest = digit_split()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert classes.dtype == torch.int64 and classes.unique().tolist() == list(range(10))
    assert len(train) == 1437
    assert sorted([*train.tolist(), *rest.tolist()]) == list(range(1797))
    # The part that the shipped weights have not seen; another split would leak it into their evaluation.
    assert rest[:5].tolist() == [6, 15, 17, 21, 28]


def test_sigma_data_is_that_of_the_train_part() -> None:
    pytest.importorskip("sklearn")
    from solverdistill.teachers.digits import digit_images, digit_split

    config, _ = read(TEACHER)
    measured = digit_images()[0][digit_split()[0]].std().item()
    assert config["preconditioning"]["sigma_data"] == pytest.approx(measured, abs=1e-3)


def test_classifier_accuracy(classifier: DigitClassifier, held_out: tuple[Tensor, Tensor]) -> None:
    images, classes = held_out
    assert (classifier(images).argmax(dim=1) == classes).float().mean() >= 0.97


@pytest.mark.parametrize(("sigma", "labelled", "unlabelled"), ERRORS)
def test_one_step_denoising(
    teacher: Preconditioned, held_out: tuple[Tensor, Tensor], sigma: float, labelled: float, unlabelled: float
) -> None:
    images, classes = held_out
    assert one_step_error(teacher, images, sigma, torch.eye(10)[classes]) < labelled
    assert one_step_error(teacher, images, sigma, None) < unlabelled


def test_samples_are_of_the_class_asked_for(teacher: Preconditioned, classifier: DigitClassifier) -> None:
    classes = torch.arange(10).repeat_interleave(4)
    labels = torch.eye(10)[classes]
    # Deterministic Heun sampler of Karras et al. 2022, algorithm 1, 12 steps.
    ramp = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 12, dtype=torch.float64) ** 7
    levels = [*ramp.float().unbind(), torch.tensor(0.0)]
    x = levels[0] * torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for sigma, lower in zip(levels[:-1], levels[1:], strict=True):
        slope = (x - teacher(x, sigma, labels)) / sigma
        proposal = x + (lower - sigma) * slope
        if lower > 0:
            slope = (slope + (proposal - teacher(proposal, lower, labels)) / lower) / 2
        x = x + (lower - sigma) * slope
    assert (classifier(x).argmax(dim=1) == classes).float().mean() >= 0.95
    assert x.abs().max() < 1.5
