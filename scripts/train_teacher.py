"""Train the two networks shipped with the package: the digits teacher and the digits classifier.

The teacher is a class-conditional denoiser of the 8x8 digits trained with the loss of Karras et al., "Elucidating the
Design Space of Diffusion-Based Generative Models", NeurIPS 2022, Eq. 8; the classifier provides the features that
samples are measured by. Both see the train part of ``digit_split`` only. Needs scikit-learn; minutes on two cores.

    python scripts/train_teacher.py                          # both, with the settings and length of the shipped files
    python scripts/train_teacher.py --only teacher --minutes 5 --out /some/folder

Runs are seeded; one with ``--minutes`` depends on the machine's speed. The shipped teacher is such a run (5 minutes,
3,353 steps), so a new run gives similar but not the same weights. Files appear complete or not at all.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from solverdistill.networks import DigitClassifier, Preconditioned, SongUNet
from solverdistill.teachers.digits import digit_images, digit_split

NETWORK = {
    "img_resolution": 8,
    "in_channels": 1,
    "out_channels": 1,
    "label_dim": 10,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "channel_mult_emb": 2,
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.05,
    "label_dropout": 0.12,
}
TRAINING = {"p_mean": -0.8, "p_std": 1.4, "lr": 2e-3, "batch": 128, "ema": 0.999}
CLASSIFIER = {"num_classes": 10, "num_features": 48, "dropout": 0.2}
WEIGHTS = Path(__file__).resolve().parent.parent / "solverdistill" / "teachers" / "weights"
console = Console()


def schedule(steps: int, minutes: float | None, title: str) -> Iterator[float]:
    """Yield the progress in [0, 1) once per step, behind a progress bar, until the steps or the minutes are used up."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    start = time.monotonic()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0)
        for step in range(steps):
            elapsed = 0.0 if minutes is None else (time.monotonic() - start) / (60 * minutes)
            progress = max(step / steps, elapsed)
            if progress >= 1:
                break
            bar.update(task, completed=progress)
            yield progress
        bar.update(task, completed=1.0)


def set_lr(optimizer: torch.optim.Optimizer, peak: float, progress: float) -> None:
    """Linear warm-up over the first 3 %, then a half cosine to zero."""
    for group in optimizer.param_groups:
        group["lr"] = peak * min(progress / 0.03, 0.5 + 0.5 * math.cos(math.pi * progress))


def save(path: Path, module: nn.Module, config: dict[str, Any]) -> None:
    """Write the state dict as safetensors with ``config`` as JSON in its metadata, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"config": json.dumps(config, sort_keys=True)})
    os.replace(partial, path)
    console.print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)")


def edm_loss(denoiser: Preconditioned, images: Tensor, one_hot: Tensor | None, p_mean: float, p_std: float) -> Tensor:
    """Denoising error weighted so that F has a unit target at every noise level (Karras et al. 2022, Eq. 8).

    Args:
        denoiser: Denoiser in training mode.
        images: Clean images. Shape: (batch, channels, height, width).
        one_hot: Classes; None for an unconditional denoiser. Shape: (batch, classes).
        p_mean: Mean of log sigma.
        p_std: Standard deviation of log sigma.
    Returns:
        Mean loss. Shape: ().
    """
    # Stratified normal draws: the same distribution for each image, less variance per batch.
    count, device = len(images), images.device
    quantile = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
    sigma = (p_mean + p_std * torch.special.ndtri(quantile.clamp(1e-5, 1 - 1e-5))).exp()
    noise = sigma[:, None, None, None] * torch.randn_like(images)
    weight = 1 / sigma**2 + 1 / denoiser.sigma_data**2
    error = (denoiser(images + noise, sigma, one_hot) - images).square().mean(dim=(1, 2, 3))
    return (weight * error).mean()


@torch.no_grad()
def denoising_errors(denoiser: Preconditioned, images: Tensor, one_hot: Tensor) -> dict[float, float]:
    """Root-mean-square error of one denoising step at a few noise levels, with fixed noise."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(images.shape, generator=generator)
    errors = {}
    for level in (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0):
        estimate = denoiser(images + level * noise, torch.full((len(images),), level), one_hot)
        errors[level] = round((estimate - images).square().mean().sqrt().item(), 4)
    return errors


def train_teacher(steps: int, minutes: float | None) -> tuple[Preconditioned, dict[str, Any]]:
    """Train the teacher; returns its moving average and the configuration to store beside the weights."""
    images, classes = digit_images()
    train, held_out = digit_split()
    one_hot = F.one_hot(classes, 10).float()
    sigma_data = round(images[train].std().item(), 4)
    denoiser = Preconditioned(SongUNet(**NETWORK), kind="edm", sigma_data=sigma_data).train()
    average = copy.deepcopy(denoiser).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=TRAINING["lr"], betas=(0.9, 0.99))
    done = 0
    for progress in schedule(steps, minutes, "teacher"):
        set_lr(optimizer, TRAINING["lr"], progress)
        batch = train[torch.randint(len(train), (TRAINING["batch"],))]
        loss = edm_loss(denoiser, images[batch], one_hot[batch], TRAINING["p_mean"], TRAINING["p_std"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        done += 1
        # A shorter memory early on, so that the average forgets the initialisation.
        decay = min(TRAINING["ema"], done / (done + 10))
        for slow, fast in zip(average.parameters(), denoiser.parameters(), strict=True):
            slow.lerp_(fast.detach(), 1 - decay)
        if done % 500 == 0:
            console.print(f"step {done}: {denoising_errors(average, images[held_out], one_hot[held_out])}")
    for name, part in (("train", train), ("held-out", held_out)):
        console.print(f"{name}, labelled: {denoising_errors(average, images[part], one_hot[part])}")
        console.print(f"{name}, unlabelled: {denoising_errors(average, images[part], 0 * one_hot[part])}")
    config = {
        "network": NETWORK,
        "preconditioning": {"kind": "edm", "sigma_data": sigma_data},
        "training": {**TRAINING, "steps": done},
    }
    return average, config


def augment(images: Tensor) -> Tensor:
    """Rotate, scale and shift each image a little. Shape: (batch, 1, 8, 8) to the same."""
    batch = len(images)
    angle = 0.2 * (2 * torch.rand(batch) - 1)
    scale = 1 + 0.1 * (2 * torch.rand(batch) - 1)
    shift = 0.15 * (2 * torch.rand(batch, 2) - 1)  # in half-widths: 0.15 is 0.6 pixels
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(batch, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    # Paper is -1 and padding is 0, hence the offset.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1 + 0.05 * torch.randn_like(images)


def train_classifier(steps: int, minutes: float | None) -> tuple[DigitClassifier, dict[str, Any]]:
    """Train the classifier; returns it in eval mode and the configuration to store beside the weights."""
    images, classes = digit_images()
    train, held_out = digit_split()
    model = DigitClassifier(**CLASSIFIER).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    for progress in schedule(steps, minutes, "classifier"):
        set_lr(optimizer, 3e-3, progress)
        batch = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(augment(images[batch])), classes[batch], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        hits = model(images[held_out]).argmax(dim=1) == classes[held_out]
    accuracy = hits.float().mean().item()
    console.print(f"held-out accuracy {accuracy:.4f} ({int((~hits).sum())} of {len(hits)} wrong)")
    return model, {"network": CLASSIFIER, "held_out_accuracy": round(accuracy, 4)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", choices=("teacher", "classifier"), help="train one of the two")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: 3400 teacher, 2000 classifier)")
    parser.add_argument("--minutes", type=float, help="end earlier, after this long, with the same decay of the rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the safetensors files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only != "teacher":
        torch.manual_seed(args.seed)
        save(args.out / "digits_classifier.safetensors", *train_classifier(args.steps or 2000, args.minutes))
    if args.only != "classifier":
        torch.manual_seed(args.seed)
        save(args.out / "edm_digits.safetensors", *train_teacher(args.steps or 3400, args.minutes))


if __name__ == "__main__":
    main()
