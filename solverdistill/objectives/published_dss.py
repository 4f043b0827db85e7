"""The losses of differentiable solver search: student states against the nearest states of the teacher's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from solverdistill.families.base import Family, Params
from solverdistill.noise.levels import Level
from solverdistill.noise.paths import Path
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.references.trajectory import Trajectory
from solverdistill.support.type_checks import check_fields

HUBER_WEIGHT, HUBER_DELTA = 1000.0, 0.001


def nearest_indices(reference: Trajectory, path: Path, levels: Sequence[Level]) -> Tensor:
    """Position on the reference's grid of the point nearest to each level, measured in the unit of `path`.

    On a uniform grid of n steps it is round(n (s_0 - s) / (s_0 - s_n)), as published. Constant in the params.
    """
    grid = path.from_clock(path.clock_of(reference.path.straight(reference.clock)))
    s = path.from_clock(torch.stack([path.clock_of(level) for level in levels])).detach()
    return (s[:, None] - grid).abs().argmin(1)


def nearest_states(reference: Trajectory, path: Path, levels: Sequence[Level]) -> Tensor:
    """Reference states at their own grid point nearest to each level, in the scale of `path`. Shape: (levels, ...)."""
    index = nearest_indices(reference, path, levels)
    straight = reference.path.straight(reference.clock[index])
    own = path.level(path.from_clock(path.clock_of(straight)))
    scale = (own.hypot() / straight.hypot()).to(reference.states.device, reference.states.dtype)
    states = reference.states[index.to(reference.states.device)]
    return states * scale.view(-1, *[1] * (states.ndim - 1))


def trajectory_loss(states: Tensor, targets: Tensor) -> Tensor:
    """Sum over the steps of the mean squared difference (`Trajs` of the paper's code)."""
    return (states - targets).pow(2).flatten(1).mean(1).sum()


def end_loss(state: Tensor, target: Tensor) -> Tensor:
    """What `TrajsReWeight` adds: 1000 times the mean Huber loss of delta 0.001, nearly the mean absolute difference."""
    return HUBER_WEIGHT * huber_loss(state, target, delta=HUBER_DELTA)


@dataclass(frozen=True)
class PublishedDSS:
    """Roll the student out and compare each state with the teacher's state at the nearest point of the teacher's grid.

    Rounding to the grid of the teacher blocks the gradient of the targets in the times: they learn through the student
    alone. `Trajectory` with interpolated targets has no such gap. States are compared in the scale of the student's
    path, which is unit variance on the paper's paths and not on edm.
    Reference: Wang et al., "Differentiable Solver Search for Fast Diffusion Sampling", ICML 2025, as its code does it.

    Args:
        reweight: Add `end_loss` on the last state (the paper's choice for SiT and DiT).
    """

    reweight: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, family: Family, params: Params, denoiser: Any, batch: Batch) -> Tensor:
        """The loss of a batch: a scalar, differentiable in the params.

        Raises:
            ValueError: the batch comes without the reference's whole trajectory.
        """
        if batch.reference is None:
            raise ValueError(
                f"the published loss of dss compares {family.name} with whole reference trajectories, and this batch "
                "holds none; take objective=trajectory"
            )
        states = sample(family.program(params), denoiser, batch.noise, batch.cond, readouts=True)[: family.steps]
        targets = nearest_states(batch.reference, family.path, family.prepared_levels(params)[1:]).to(states)
        loss = trajectory_loss(states, targets)
        return loss + end_loss(states[-1], targets[-1]) if self.reweight else loss
