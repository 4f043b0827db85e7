"""A small classifier of MNIST digits, whose features measure samples of an MNIST teacher; trained in half a minute.

    python scripts/benchmarks/mnist_classifier.py t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz --out mnist.st
    python scripts/evaluate.py ... 'extractor={_target_: scripts.benchmarks.mnist_classifier.load, weights: mnist.st}'

Nine tenths of the digits train it, the rest tell its accuracy. Its features are few, so that a few hundred samples
determine their covariance; a Frechet distance on them is no FID and compares with none made elsewhere.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from solverdistill.evaluation.real_images import open_images

IDX_LABELS = 0x00000801  # magic number: unsigned bytes in one dimension
BATCH = 100
LEARNING_RATE = 3e-3
HELD_OUT = 10  # every tenth digit


class MnistClassifier(nn.Module):
    """Three convolutions, a smooth feature layer and a linear read-out; calling it gives the features.

    Args:
        num_features: Width of the feature layer.
    """

    name = "MNIST classifier"

    def __init__(self, num_features: int = 32) -> None:
        super().__init__()
        self.num_features = num_features
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 16, 2), (16, 32, 1), (32, 48, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.project = nn.Linear(48 * 7 * 7, num_features)
        self.head = nn.Linear(num_features, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Features of images in [-1, 1]. Shape: (batch, 1, 28, 28) to (batch, num_features)."""
        return F.silu(self.project(self.conv(x).flatten(1)))

    def logits(self, x: Tensor) -> Tensor:
        """Class logits. Shape: (batch, 1, 28, 28) to (batch, 10)."""
        return self.head(self(x))


def load(weights: str) -> MnistClassifier:
    """Load a classifier that `main` has written, frozen.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file's tensors are not those of this network.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(f"classifier weights {weights} do not exist; {Path(__file__).name} trains them")
    network = MnistClassifier()
    try:
        network.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"classifier weights {weights} are not those of the MNIST classifier: {error}") from None
    return network.eval().requires_grad_(False)


def read_labels(path: Path) -> Tensor:
    """Labels of LeCun's idx format. Shape: (images,), int64.

    Raises:
        ValueError: the file holds something else.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        data = stream.read()
    magic, count = (int.from_bytes(data[i : i + 4], "big") for i in (0, 4))
    if magic != IDX_LABELS or len(data) != 8 + count:
        raise ValueError(f"labels {path} are no MNIST label file (idx1-ubyte[.gz])")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=8).long()


def fit(images: Tensor, labels: Tensor, epochs: int) -> tuple[MnistClassifier, float]:
    """Train a classifier on shifted digits, with the rate falling linearly to zero.

    Args:
        images: In [-1, 1]. Shape: (images, 1, 28, 28).
        labels: Their digits. Shape: (images,).
        epochs: Passes over the digits that train.
    Returns:
        The classifier in evaluation mode, and its accuracy on the digits held out.
    """
    held_out = torch.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    train = (~held_out).nonzero().flatten()
    network = MnistClassifier().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    batches = [b for _ in range(epochs) for b in train[torch.randperm(len(train))].split(BATCH)]
    for step, chosen in enumerate(batches):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / len(batches))
        loss = F.cross_entropy(network.logits(_shifted(images[chosen])), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        hits = network.logits(images[held_out]).argmax(dim=1) == labels[held_out]
    return network.requires_grad_(False), hits.float().mean().item()


def _shifted(images: Tensor) -> Tensor:
    """Images moved by up to two pixels, all of a batch alike; digits have a margin of four."""
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return images.roll((down, right), dims=(2, 3))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("images", type=Path, help="MNIST image file, idx3-ubyte[.gz]")
    parser.add_argument("labels", type=Path, help="MNIST label file, idx1-ubyte[.gz]")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the digits (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: 0)")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    digits = open_images(arguments.images, channels=1)
    images, labels = digits.take(range(len(digits))), read_labels(arguments.labels)
    if len(images) != len(labels):
        parser.error(f"{arguments.labels} has {len(labels)} labels for {len(images)} images")
    network, accuracy = fit(images, labels, arguments.epochs)
    save_file(network.state_dict(), arguments.out)
    print(f"{arguments.out} is written; accuracy {accuracy:.4f} on the {len(images) // HELD_OUT} digits held out")


if __name__ == "__main__":
    main()
