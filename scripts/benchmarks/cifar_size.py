"""A network of EDM's CIFAR-10 architecture (55.7M weights), trained for minutes on MNIST digits in random colours.

For benchmarks of speed and memory at that size where the released weights do not lie at hand: what it samples are
coloured digits, so its errors compare with those of no CIFAR-10 network.

    python -m scripts.benchmarks.cifar_size t10k-images-idx3-ubyte.gz --minutes 4 --out coloured_digits.safetensors
    python scripts/benchmark.py fits --model edm_cifar --set model.weights=coloured_digits.safetensors --device cuda
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from scripts.train_teacher import edm_loss, schedule, set_lr
from solverdistill.evaluation.real_images import open_images
from solverdistill.networks import Preconditioned
from solverdistill.support.processes import pick_device
from solverdistill.teachers.checkpoints.cards import card
from solverdistill.teachers.nvlabs import build

SIDE = 32
LEARNING_RATE = 5e-4
AVERAGE = 0.999  # decay of the moving average of the weights
P_MEAN, P_STD = -1.2, 1.2  # of log sigma in training, Karras et al. 2022, Table 1


def coloured(digits: Tensor) -> Tensor:
    """Digits in a random colour each, before a random one, in a frame of theirs.

    Args:
        digits: In [-1, 1]. Shape: (batch, 1, 28, 28).
    Returns:
        Shape: (batch, 3, 32, 32), in [-1, 1].
    """
    margin = (SIDE - digits.shape[-1]) // 2
    ink = torch.nn.functional.pad((digits + 1) / 2, [margin] * 4)
    colours = 2 * torch.rand(2, len(digits), 3, 1, 1, device=digits.device) - 1
    return colours[0] + ink * (colours[1] - colours[0])


def train(
    network: Preconditioned, digits: Tensor, steps: int, minutes: float | None, batch: int
) -> tuple[Preconditioned, float, int]:
    """Train in place.

    Args:
        network: On the device of the digits.
        digits: In [-1, 1]. Shape: (images, 1, 28, 28).
        steps: Steps, at most.
        minutes: End earlier, after this long; the learning rate falls in time for it.
        batch: Images per step.
    Returns:
        The moving average of the network in evaluation mode, the mean loss of the last tenth, and the number of steps.
    """
    network.train()
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=digits.is_cuda)
    losses = list[Tensor]()
    for progress in schedule(steps, minutes, "network"):
        set_lr(optimizer, LEARNING_RATE, progress)
        images = coloured(digits[torch.randint(len(digits), (batch,), device=digits.device)])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            loss = edm_loss(network, images, None, P_MEAN, P_STD)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        # A shorter memory early on, so that the average forgets the initialisation.
        decay = min(AVERAGE, len(losses) / (len(losses) + 10))
        for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - decay)
    last = torch.stack(losses[-max(1, len(losses) // 10) :])
    return average, float(last.mean()), len(losses)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("images", type=Path, help="MNIST image file, idx3-ubyte[.gz]")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=100_000, help="steps, at most (default: 100000)")
    parser.add_argument("--minutes", type=float, default=4.0, help="end after this long (default: 4)")
    parser.add_argument("--batch", type=int, default=256, help="images per step (default: 256)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: 0)")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.backends.cudnn.benchmark = True
    device, facts = pick_device(arguments.device), card("edm_cifar")
    network = build(facts, {**facts.config["arguments"], "augment_dim": 0}).to(device)
    digits = open_images(arguments.images, channels=1)
    pixels = digits.take(range(len(digits))).to(device)
    average, loss, steps = train(network, pixels, arguments.steps, arguments.minutes, arguments.batch)
    save_file({name: value.cpu().contiguous() for name, value in average.state_dict().items()}, arguments.out)
    print(f"{arguments.out} is written; {steps} steps of {arguments.batch} images, loss {loss:.4f} at the end")


if __name__ == "__main__":
    main()
