"""Wrappers that change what a denoiser computes, or only how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from solverdistill.denoisers.base import Denoiser, call
from solverdistill.programs.playing import slice_batch
from solverdistill.support.memory import Parts, lower


class Guided(nn.Module):
    """Classifier-free guidance: D_null + scale (D_cond - D_null), both halves in one call.

    Linear in the denoised estimate, so it is the same as guiding eps, v or the flow velocity at that level.
    Reference: Ho, Salimans, "Classifier-Free Diffusion Guidance", 2022, Eq. 6.

    Args:
        denoiser: The conditional denoiser.
        scale: Guidance scale; 1 is the conditional denoiser itself and costs one network pass.
        null_cond: Maps a batch of conditions to the unconditional ones.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null_cond: Callable[[Any], Any]) -> None:
        super().__init__()
        self.denoiser, self.scale, self.null_cond = denoiser, float(scale), null_cond

    @property
    def passes(self) -> int:
        """Network passes per evaluation."""
        return 1 if self.scale == 1 else 2

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        if self.scale == 1 or cond is None:
            return call(self.denoiser, x, alpha, sigma, cond)
        joined = pytree.tree_map(_join, self.null_cond(cond), cond)
        x, alpha, sigma = (torch.cat([v, v]) for v in (x, alpha, sigma))
        null, conditional = self.denoiser(x, alpha, sigma, joined).chunk(2)
        return null + self.scale * (conditional - null)


def _join(null: Any, cond: Any) -> Any:
    return torch.cat([null, cond]) if isinstance(cond, Tensor) and cond.ndim else cond


class Thresholded(nn.Module):
    """Dynamic thresholding: per sample q = max(1, quantile of abs(D)), D -> clip(D, -q, q) / q.

    Reference: Saharia et al., "Photorealistic Text-to-Image Diffusion Models", NeurIPS 2022, section 2.3.
    """

    def __init__(self, denoiser: Denoiser, quantile: float = 0.995) -> None:
        super().__init__()
        self.denoiser, self.quantile = denoiser, quantile

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        denoised = call(self.denoiser, x, alpha, sigma, cond)
        q = torch.quantile(denoised.abs().flatten(1), self.quantile, dim=1).clamp(min=1.0)
        q = q.view(-1, *[1] * (denoised.ndim - 1))
        return torch.minimum(torch.maximum(denoised, -q), q) / q


class Checkpointed(nn.Module):
    """Recompute each evaluation in the backward pass, so that one network graph is in memory at a time."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        if not torch.is_grad_enabled():
            return call(self.denoiser, x, alpha, sigma, cond)
        result = checkpoint(call, self.denoiser, x, alpha, sigma, cond, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(result, Tensor)
        return result


class InParts(nn.Module):
    """Evaluate a batch in parts where the device has no memory for the whole of it.

    Whoever made the batch, and whatever is decided on it as a whole, as the steps of an adaptive solver, sees nothing
    of it: only the network gets fewer samples at once, which changes them by the rounding of kernels that depend on the
    batch. Where a graph is kept for a backward pass, parts of a call would need as much as the whole; there the caller
    has to take fewer samples.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.parts = denoiser, Parts(None, "a network call")

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        batch, tree = x.shape[0], (x, alpha, sigma, cond)
        if torch.is_grad_enabled() or not batch:
            return call(self.denoiser, *tree)

        def evaluate(rows: slice) -> Tensor:
            return call(self.denoiser, *(tree if rows == slice(0, batch) else slice_batch(tree, batch, rows)))

        with lower("the network, given a single sample,", "take a device with more, or a network in lower precision"):
            outputs = self.parts.run(batch, evaluate)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class Counted(nn.Module):
    """Count what a denoiser is asked for.

    Attributes:
        calls: Network calls, batched or not.
        images: Images evaluated: the sum of the batch sizes.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.calls, self.images = denoiser, 0, 0

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        self.calls += 1
        self.images += x.shape[0]
        return call(self.denoiser, x, alpha, sigma, cond)
