"""SiT-XL/2 and DiT-XL/2: latent transformers of ImageNet from their authors' own checkpoints.

Both are the network `solverdistill.networks.DiT` on latents of the Stable Diffusion autoencoder multiplied by 0.18215
(an image is that autoencoder's decoder at latent / 0.18215): 4 x 32 x 32 for 256 pixels, 4 x 64 x 64 for 512. Classes
are int64 labels 0 to 999; -1 takes the null row 1000 that both were trained with for classifier-free guidance.

**DiT** predicts the noise of a discrete schedule (betas evenly spaced from 0.0001 to 0.02 in 1,000 steps, times 0 to
999); the second half of its output channels parametrises a variance and is dropped. Its embedding of time is
continuous, so a level between two steps is told as the fractional index at which log alpha, interpolated linearly, is
that of the level (`schedules.NativeLevels`); outside of the steps the end segments are extended. With
h = hypot(alpha, sigma):

    denoised = (x - sigma eps(x / h, index)) / alpha

which is undefined at alpha = 0, where an eps network says nothing about the image.

**SiT** predicts the velocity of a linear interpolant. Its own time runs from noise (0) to data (1), as the transport
module of its authors' repository says: that draws x_0 as noise and takes x_1 as data, forms x_t = t x_1 + (1 - t) x_0,
trains the velocity x_1 - x_0, data minus noise, and samples from t = 0 to 1. Time is told unscaled. So with
c = alpha + sigma, exact at both ends:

    denoised = x / c + (sigma / c) v(x / c, alpha / c)

Its noise range ends at 0.001 and not at 0 because many solvers divide by the last level; `solver.grid.end=0` suits
those that do not. A file without variance channels, as its authors' training writes, is recognised.

Reference: Peebles, Xie, "Scalable Diffusion Models with Transformers", ICCV 2023; Ma et al., "SiT: Exploring Flow and
Diffusion-based Generative Models with Scalable Interpolant Transformers", ECCV 2024, Eqs. 2-5.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from solverdistill.networks.dit import DiT
from solverdistill.noise.paths import Discrete, Flow, Path
from solverdistill.teachers.checkpoints.loading import load_checkpoint
from solverdistill.teachers.own.conventions import Convention
from solverdistill.teachers.own.teacher import OwnTeacher
from solverdistill.teachers.running import Running

LINEAR_BETAS = Discrete(beta_schedule="linear", beta_start=0.0001, beta_end=0.02, steps=1000)


def dit_checkpoint(
    name: str = "dit_xl",
    weights: str | os.PathLike[str] | None = None,
    network: Mapping[str, Any] | None = None,
    running: Running | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> OwnTeacher:
    """Load a DiT checkpoint as a teacher.

    Args:
        name: Name of the card: "dit_xl" (256 pixels) or "dit_xl_512".
        weights: None takes the published file, downloading it once; a path takes a file of your own; "random" makes a
            network with random weights, to measure speed only, whose name ends in "-random".
        network: Arguments of `DiT` that differ from the card's, for a file of your own training.
        running: How the network is run.
        seed: Seed of the random weights.
    Raises:
        FileNotFoundError: the file is not there and cannot be downloaded.
        ValueError: the file is not that of the network.
    """
    running = Running.of(running)
    return dit_teacher(*load_checkpoint(name, "DiT", weights, network, seed), running)


def sit_checkpoint(
    name: str = "sit_xl",
    weights: str | os.PathLike[str] | None = None,
    network: Mapping[str, Any] | None = None,
    running: Running | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> OwnTeacher:
    """Load a SiT checkpoint (linear interpolant, velocity) as a teacher; arguments and errors as `dit_checkpoint`."""
    running = Running.of(running)
    return sit_teacher(*load_checkpoint(name, "DiT", weights, network, seed), running)


def dit_teacher(network: DiT, name: str, running: Running | Mapping[str, Any] | None = None) -> OwnTeacher:
    """An eps transformer on the schedule of linear betas as a denoiser, as the module docstring says.

    Args:
        network: The transformer.
        name: Name of the teacher.
        running: How the network is run.
    """
    return _teacher(network, name, ("eps", "index"), LINEAR_BETAS, (1.0, 1 / LINEAR_BETAS.steps), running)


def sit_teacher(network: DiT, name: str, running: Running | Mapping[str, Any] | None = None) -> OwnTeacher:
    """A velocity transformer of the linear interpolant as a denoiser, as the module docstring says.

    Args:
        network: The transformer.
        name: Name of the teacher.
        running: How the network is run.
    """
    return _teacher(network, name, ("flow", "reversed"), Flow(), (1.0, 0.001), running)


def _teacher(
    network: DiT, name: str, meaning: tuple[str, str], path: Path, noise_range: tuple[float, float], running: Any
) -> OwnTeacher:
    null = network.y_embedder.embedding_table.num_embeddings - 1
    size = network.side * network.patch_size
    shape = (network.x_embedder.proj.in_channels, size, size)
    convention = Convention(*meaning, call=("x", "time", "label"), null_label=null)
    return OwnTeacher(network, convention, path, shape, noise_range, name, null, running)
