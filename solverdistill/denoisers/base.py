"""The denoiser protocol: one interface for every network, and the wrappers that change what it computes.

A denoiser is called as ``denoiser(x, alpha, sigma, cond=None)``: `x` is a state at noise level (alpha, sigma), that is
x = alpha x_0 + sigma n, both levels have shape (batch,), and the result estimates E[x_0 | x]. Levels are scale-free:
multiplying x, alpha and sigma by the same number changes nothing. Everything is differentiable in x and in the level.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from solverdistill.noise.paths import EDM, Path


class Denoiser(Protocol):
    """Anything that estimates the clean image from a noisy one."""

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        """Return the denoised estimate in data units. Shape as x."""
        ...


class Teacher(nn.Module):
    """A frozen pretrained network as a denoiser, with the facts that solvers and exported files need.

    Subclasses define ``forward(x, alpha, sigma, cond=None)``. It owns native scaling, prediction type, discrete times
    and dtype; forms the denoised estimate in float32 or better; never clamps a noise level.

    Args:
        name: Name that appears in files and tables.
        shape: Shape of one sample, without the batch.
        path: The teacher's own noise path.
        noise_range: Largest and smallest noise level to sample between, in the path's own unit.
        prediction: What the raw network predicts: "denoised", "eps", "v" or "flow".
        num_classes: Number of class labels; 0 for an unconditional teacher. Labels are an int64 tensor of shape
            (batch,), -1 meaning no class.
    """

    data_range: tuple[float, float] = (-1.0, 1.0)  # values of black and white in decoded samples, for figures
    own_guidance: float | None = None  # scale in effect of a teacher that guides itself; None for all others

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        path: Path | None = None,
        noise_range: tuple[float, float] = (80.0, 0.002),
        prediction: str = "denoised",
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.name, self.shape, self.path = name, tuple(shape), path or EDM()
        self.noise_range, self.prediction, self.num_classes = noise_range, prediction, num_classes

    def noise_range_on(self, path: Path) -> tuple[float, float]:
        """The noise range in the unit of another path, by its signal-to-noise ratios.

        Raises:
            ValueError: the path has no level at one of its ends.
        """
        if path == self.path:
            return self.noise_range
        start, end = (float(path.from_half_log_snr(self.path.half_log_snr(level))) for level in self.noise_range)
        if not 0 <= end < start < float("inf"):
            raise ValueError(
                f"{self.name} is sampled from {self.noise_range[0]:g} to {self.noise_range[1]:g} on the "
                f"{self.path.name} path, which the {path.name} path has no levels for; state solver.grid.start and "
                "solver.grid.end in its own unit"
            )
        return start, end

    def freeze(self) -> Teacher:
        """Evaluation mode, no parameter gradients."""
        return self.eval().requires_grad_(False)

    def draw_cond(self, generator: torch.Generator) -> Any:
        """Draw the condition of one sample (without batch dimension) from its own generator; None for none."""
        if self.num_classes == 0:
            return None
        return torch.randint(self.num_classes, (), generator=generator)

    def null_cond(self, cond: Any) -> Any:
        """The unconditional counterpart of a batch of conditions."""
        return pytree.tree_map(lambda label: torch.full_like(label, -1), cond)

    def guided(self, rule: Any) -> Teacher:
        """A teacher that guides itself (see `own_guidance`), guided by a `GuidanceRule`."""
        raise NotImplementedError(f"{self.name} does not guide itself")

    def passes(self, program: Any) -> int:
        """Network passes per sample of a `SolverProgram`."""
        return program.nfe

    def decode(self, samples: Tensor) -> Tensor:
        """Images in [-1, 1] of samples, differentiable: latent teachers decode here, others give them back."""
        return samples

    def description(self) -> dict[str, Any]:
        """Facts that decide what the teacher computes, JSON-able; part of its fingerprint."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "path": self.path.hyperparameters(),
            "noise_range": list(self.noise_range),
            "prediction": self.prediction,
            "num_classes": self.num_classes,
        }

    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) of the description and of every tensor of the network."""
        digest = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode())
        for key, value in sorted(self.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def call(denoiser: Any, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any) -> Tensor:
    """Call a denoiser, leaving `cond` out where there is none (so plain functions of three arguments work)."""
    return denoiser(x, alpha, sigma) if cond is None else denoiser(x, alpha, sigma, cond)


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """Reshape (batch,) so that it broadcasts over the samples of x."""
    return value.view(-1, *[1] * (x.ndim - 1))
