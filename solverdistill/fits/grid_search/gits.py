"""GITS: the grid on which Euler jumps along reference trajectories cost least, found by dynamic programming.

On the points u_0 > ... > u_n of a fine reference with states y_i and slopes d_i (straight coordinates, where one Euler
step is DDIM), jumping from i to j > i ends in ``y_ij = y_i + (u_j - u_i) d_i`` instead of y_j. Its cost c_ij is the
mean over the samples of

=====  ==============================================================================================
l1     |y_ij - y_j|_1
l2     |y_ij - y_j|_2
dev    dev(y_ij) - dev(y_j), dev being the distance from the straight line through y_0 and y_n; signed
=====  ==============================================================================================

and a grid of K steps with points p_0 = 0 < p_1 < ... < p_K = n is the one with the least

    sum over m of gamma^m c(p_m, p_m+1),

found exactly in O(K n^2). gamma > 1 weighs late steps more, which moves points to small noise levels. The teacher runs
once per sample and fine step; the search itself calls no network. The cost is an Euler jump's whatever solver then
plays the grid.
Reference: Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling", ICML 2024. arXiv 2405.11326
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solverdistill import families
from solverdistill.references.trajectory import Trajectory

METRICS = ("dev", "l1", "l2")


@torch.no_grad()
def jump_costs(reference: Trajectory, metric: str = "dev") -> Tensor:
    """Cost of one Euler jump between any two points of a reference.

    Args:
        reference: Trajectories of some samples on the fine grid.
        metric: One of `METRICS`.
    Returns:
        Costs, row = start, column = end, 0 on and below the diagonal; float64 on the host. Shape: (points, points).
    Raises:
        ValueError: the metric is unknown.
    """
    if metric not in METRICS:
        raise ValueError(f"cost metric {metric!r} of gits is unknown; known: {', '.join(METRICS)}")
    states, slopes = reference.states.flatten(2), reference.slopes.flatten(2)
    clock = reference.clock.to(states.device, states.dtype)
    line = states[-1] - states[0]
    unit = line / line.norm(dim=-1, keepdim=True)

    def deviation(y: Tensor) -> Tensor:
        offset = y - states[0]
        return (offset - (offset * unit).sum(-1, keepdim=True) * unit).norm(dim=-1)

    costs = torch.zeros(len(clock), len(clock), dtype=torch.float64)
    for i in range(len(clock) - 1):
        jumped = states[i] + (clock[i + 1 :] - clock[i])[:, None, None] * slopes[i]
        if metric == "dev":
            cost = deviation(jumped) - deviation(states[i + 1 :])
        else:
            cost = (jumped - states[i + 1 :]).norm(p=int(metric[1]), dim=-1)
        costs[i, i + 1 :] = cost.mean(1).cpu()
    return costs


def cheapest_path(costs: Tensor, steps: int, gamma: float = 1.15) -> list[int]:
    """Points of the cheapest way from the first to the last point in exactly `steps` jumps.

    V_1(i) = c(i, n) and V_k(i) = min over i < j < n of c(i, j) + gamma V_{k-1}(j); of equal ones the first j is taken.

    Args:
        costs: Cost of every jump, as from `jump_costs`; what lies on and below the diagonal is not read.
        steps: Number of jumps.
        gamma: Weight of the m-th jump is gamma^m, m = 0, 1, ...
    Returns:
        Increasing indices, `steps + 1` of them, the first and the last point included.
    Raises:
        ValueError: there are not as many points, or gamma is not positive.
    """
    last = len(costs) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"a grid of {steps} steps cannot be chosen from {last} fine steps; take 1 to {last} steps")
    if gamma <= 0:
        raise ValueError(f"gamma of gits must be above 0, not {gamma}")
    allowed = torch.ones_like(costs, dtype=torch.bool).triu(1)
    value = torch.where(allowed[:, last], costs[:, last], torch.inf)
    allowed[:, last] = False
    inner, choices = torch.where(allowed, costs, torch.inf), []
    for _ in range(steps - 1):
        totals = inner + gamma * value
        choices.append(totals.argmin(1))  # the first of equal ones
        value = totals.amin(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [*path, last]


@torch.no_grad()
def insert_analytical_step(
    reference: Trajectory,
    levels: Sequence[float],
    indices: Sequence[int],
    noise: Tensor,
    denoiser: Any,
    cond: Any = None,
    solver: str = "ipndm",
) -> list[int]:
    """Give a chosen grid one more point, reached by the analytical first step, so that the number of evaluations stays.

    Every fine point before the first chosen one is tried, and the one is kept with which `solver` ends nearest to the
    reference (mean distance of the samples). The reference itself is solved without that step. Where the first chosen
    point follows the beginning directly there is no room: the indices are returned as they are, and the analytical
    step then saves an evaluation instead.

    Args:
        reference: Trajectories from `noise`, without an analytical first step.
        levels: Noise levels of its points, in the path's own unit.
        indices: Chosen points, as from `cheapest_path`.
        noise: Unit-normal noise. Shape: (batch, ...).
        denoiser: The teacher.
        cond: Its condition, or None.
        solver: Family that is tried; it needs the option `afs`.
    Returns:
        Increasing indices, one more than before where there is room. Play them with `afs=True`.
    """
    target, best, chosen = reference.end(), torch.inf, list(indices)
    for k in range(1, indices[1]):
        tried = [indices[0], k, *indices[1:]]
        family = families.build(solver, [levels[i] for i in tried], reference.path, afs=True)
        *_, end = family.solve(denoiser, noise.to(target), cond=cond)
        distance = float((end - target).flatten(1).norm(dim=1).mean())
        if distance < best:
            best, chosen = distance, tried
    return chosen
