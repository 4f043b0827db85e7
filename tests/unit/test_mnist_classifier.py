"""The benchmark's classifier of MNIST digits: its files, training, features, and its place among the extractors."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts.benchmarks import mnist_classifier
from scripts.benchmarks.mnist_classifier import MnistClassifier, fit, load, main, read_labels
from solverdistill.evaluation.metrics.feature_spaces import open_space
from solverdistill.teachers.mixture import toy_mixture


def bars(count: int) -> tuple[Tensor, Tensor]:
    """Images of four classes, a bright bar at a height of its own, and their labels."""
    labels = torch.randint(0, 4, (count,))
    pixels = torch.randint(0, 60, (count, 28, 28), dtype=torch.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[6 * label + 3 : 6 * label + 6, 4:24] = 255
    return pixels, labels


def write(folder: Path, pixels: Tensor, labels: Tensor) -> tuple[Path, Path]:
    images, classes = folder / "images-idx3-ubyte.gz", folder / "labels-idx1-ubyte"
    sizes = b"".join(size.to_bytes(4, "big") for size in (0x803, len(pixels), 28, 28))
    images.write_bytes(gzip.compress(sizes + pixels.numpy().tobytes()))
    head = (0x801).to_bytes(4, "big") + len(labels).to_bytes(4, "big")
    classes.write_bytes(head + labels.to(torch.uint8).numpy().tobytes())
    return images, classes


def test_it_learns_and_says_how_well_on_digits_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_classifier, "BATCH", 20)
    pixels, labels = bars(300)
    images = pixels[:, None].float() / 127.5 - 1
    network, accuracy = fit(images, labels, epochs=4)
    assert accuracy > 0.9 and not network.training and not any(p.requires_grad for p in network.parameters())
    assert fit(images, labels[torch.randperm(300)], epochs=2)[1] < 0.7


def test_the_command_writes_what_the_evaluation_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(path) for path in write(tmp_path, *bars(100))]
    out = tmp_path / "classifier.safetensors"
    monkeypatch.setattr(sys, "argv", ["mnist_classifier", *files, "--out", str(out), "--epochs", "1"])
    main()
    assert "accuracy" in capsys.readouterr().out
    network = load(str(out))
    x = torch.rand(5, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(network.logits(x), network.head(network(x)))
    space = open_space(network, "cleanfid", toy_mixture())
    assert space is not None and (space.width, space.frechet) == (32, "FD(MNIST classifier)")
    quantised = (x * 127.5 + 127.5).round() / 127.5 - 1
    torch.testing.assert_close(space(x).float(), network(quantised), atol=0.05, rtol=0.05)


def test_labels_are_read_and_other_files_refused(tmp_path: Path) -> None:
    pixels, labels = bars(30)
    images, classes = write(tmp_path, pixels, labels)
    assert torch.equal(read_labels(classes), labels)
    with pytest.raises(ValueError, match="are no MNIST label file"):
        read_labels(images)


def test_weights_that_are_missing_or_others_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mnist_classifier.py trains them"):
        load(str(tmp_path / "none.safetensors"))
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="are not those of the MNIST classifier"):
        load(str(tmp_path / "other.safetensors"))
    assert MnistClassifier().eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 32)
