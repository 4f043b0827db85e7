"""Relaxed end points: training noise that may move a little towards whatever the student can hit.

A student with few evaluations cannot map every noise to the teacher's image, but often maps a noise close by to it. LD3
and S4S therefore minimise the soft loss::

    E_{z ~ N(0, I)}  min_{|z' - z| <= r}  distance(student(z'), teacher(z)),      r = gamma d / nfe^2

over the params and the moved noises z' together. One round per batch, all pure functions here::

    loss = per_sample_loss(z')                       with gradients for the params and for z'
    candidate = move(z', z'.grad, shift_lr)          plain gradient descent
    optimizer.step()                                 the params
    candidate = project(candidate, z, r)             back into the ball around the noise drawn first
    z' = accept(candidate, z', per_sample_loss(candidate), loss)

Acceptance compares the candidate under the new params with z' under the old ones, sample by sample.

Reference: Tong et al., "Learning to Discretize Denoising Diffusion ODEs", ICLR 2025, Eq. 6 and Alg. 1. arXiv 2405.15506
"""

from __future__ import annotations

import torch
from torch import Tensor

from solverdistill.denoisers.base import per_sample


def prior_bound(dimension: int, nfe: int, gamma: float = 1e-3) -> float:
    """Radius r = gamma d / nfe^2 of the ball, in units of the unit-normal noise; d is the sample's dimension."""
    if dimension < 1 or nfe < 1 or gamma < 0:
        raise ValueError(f"a ball needs dimension, nfe >= 1 and gamma >= 0, not {dimension}, {nfe} and {gamma}")
    return gamma * dimension / nfe**2


def shift_rate(nfe: int, scale: float = 12.0) -> float:
    """Published learning rate of the noise, 12 / nfe, for gradients of the batch mean."""
    if nfe < 1:
        raise ValueError(f"the learning rate of the noise needs nfe >= 1, not {nfe}")
    return scale / nfe


def move(noise: Tensor, gradient: Tensor, shift_lr: float) -> Tensor:
    """One step of gradient descent on the noise, detached. Shape as noise."""
    return (noise - shift_lr * gradient).detach()


def project(moved: Tensor, origin: Tensor, radius: float) -> Tensor:
    """Nearest point of the L2 ball around `origin`, sample by sample; points inside stay. Shape as moved."""
    offset = moved - origin
    length = offset.flatten(1).norm(dim=1)
    shrink = torch.where(length > radius, radius / length.clamp(min=torch.finfo(length.dtype).tiny), 1.0)
    inside = per_sample(length <= radius, moved)
    return torch.where(inside, moved, origin + offset * per_sample(shrink, moved))


def accept(candidate: Tensor, previous: Tensor, new_loss: Tensor, old_loss: Tensor) -> Tensor:
    """Keep the candidate of every sample whose loss became smaller, otherwise the previous noise.

    Args:
        candidate: Moved and projected noise. Shape: (batch, ...).
        previous: Noise before the move. Shape as candidate.
        new_loss: Loss of the candidate. Shape: (batch,).
        old_loss: Loss of the previous noise. Shape: (batch,).
    """
    return torch.where(per_sample(new_loss < old_loss, candidate), candidate, previous).detach()
