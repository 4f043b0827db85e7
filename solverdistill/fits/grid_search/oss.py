"""OSS: the steps of an Euler student that stay nearest to a reference, by a recursion over its points.

On the points u_0 > ... > u_n of a fine reference with states y_j (straight coordinates), z_k(j) is the best state that
a student of k Euler steps has at point j:

    z_k(j) = z_{k-1}(i) + (u_j - u_i) d(z_{k-1}(i), u_i)    with the i < j that brings it nearest to y_j,    z_0 = y_0

and the way to u_n is read backwards from z_K(n). One state survives at each point, so the recursion is greedy, exact up
to two steps. Unlike GITS it asks the network about the student's own states: about K n evaluations per sample. Which i
is nearest does not depend on the scale of j's states, so all paths agree on the steps.
Reference: Pei et al., "Optimal Stepsize for Diffusion Sampling", 2025. arXiv 2503.21774
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solverdistill.programs.tracing import Eager
from solverdistill.references.trajectory import Trajectory


@torch.no_grad()
def optimal_steps(
    reference: Trajectory,
    denoiser: Any,
    steps: int,
    cond: Any = None,
    shared: bool = False,
    free_start: bool = False,
) -> Tensor:
    """Points of the best Euler steps of every sample.

    Args:
        reference: Trajectories of some samples on the fine grid.
        denoiser: The teacher.
        steps: Number of steps.
        cond: Condition of the samples, or None.
        shared: Choose by the mean squared distance of all samples together: all rows are then equal.
        free_start: As published: the first step may begin at any point, with the initial noise as the state there (in
            flow coordinates, alpha + sigma = 1). Rows then need not begin at 0.
    Returns:
        Increasing indices; the last is the last point. Shape: (batch, steps + 1), int64.
    Raises:
        ValueError: the reference has fewer steps.
    """
    last, batch = len(reference.clock) - 1, reference.states.shape[1]
    if not 1 <= steps <= last:
        raise ValueError(f"a grid of {steps} steps cannot be chosen from {last} fine steps; take 1 to {last} steps")
    states, choices = _initial_states(reference), []
    for k in range(steps):
        # A student needs k steps to have come as far as point k, and one more point for each step that is left.
        begins = range(k, last - (steps - k) + 1) if k or free_start else range(1)
        states, choice = _stage(reference, states, begins, Eager(denoiser, cond), shared)
        choices.append(choice)
    path = [torch.full((batch,), last, device=states.device)]
    for choice in reversed(choices):
        path.append(choice.gather(0, path[-1][None])[0])
    return torch.stack(path[::-1], dim=1).cpu()


def median_steps(paths: Tensor) -> list[int]:
    """One path for all samples: at every position the mean of the two middle entries, rounded towards clean data.

    Args:
        paths: Paths of the samples, as from `optimal_steps`. Shape: (batch, steps + 1).
    Returns:
        Increasing indices, `steps + 1` of them.
    """
    ordered, count = paths.sort(dim=0).values, len(paths)
    return ((ordered[(count - 1) // 2] + ordered[count // 2] + 1) // 2).tolist()


def _initial_states(reference: Trajectory) -> Tensor:
    """The initial noise as state of every point, the same in flow coordinates. Shape: (points, batch, ...)."""
    alpha, sigma = reference.path.straight(reference.clock)
    scale = ((alpha + sigma) / (alpha[0] + sigma[0])).to(reference.states.device, reference.states.dtype)
    return reference.states[0] * scale.view(-1, *[1] * (reference.states.ndim - 1))


def _stage(
    reference: Trajectory, states: Tensor, begins: range, evaluate: Eager, shared: bool
) -> tuple[Tensor, Tensor]:
    """One more step: the best state at every point, and the point it comes from. Shapes: as states; (points, batch)."""
    clock, targets = reference.clock.to(states.device, states.dtype), reference.states
    best = torch.full(states.shape[:2], torch.inf, dtype=states.dtype, device=states.device)
    nearest, choice = torch.zeros_like(states), torch.zeros(best.shape, dtype=torch.int64, device=states.device)
    for i in begins:
        slope = (states[i] - evaluate(states[i], reference.path.straight(reference.clock[i]))) / clock[i]
        stepped = states[i] + (clock[i + 1 :] - clock[i]).view(-1, *[1] * slope.ndim) * slope
        error = (stepped - targets[i + 1 :]).flatten(2).pow(2).mean(2)
        if shared:
            error = error.mean(1, keepdim=True).expand_as(error)
        better = error < best[i + 1 :]
        best[i + 1 :] = torch.where(better, error, best[i + 1 :])
        choice[i + 1 :] = torch.where(better, i, choice[i + 1 :])
        nearest[i + 1 :] = torch.where(better.view(*better.shape, *[1] * (slope.ndim - 1)), stepped, nearest[i + 1 :])
    return nearest, choice
