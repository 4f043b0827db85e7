"""Reference trajectories: seeded noise, a fine solve of the teacher, and its state at any noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill import families
from solverdistill.denoiser import Teacher
from solverdistill.families.base import Family
from solverdistill.grids import Grid, nested_grid
from solverdistill.noise import Level, Path
from solverdistill.settings import check_fields
from solverdistill.tracing import Eager

# Splits draw from disjoint ranges of sample indices, so that held-out samples never meet the training ones.
SPLITS = {"train": 0, "validation": 1 << 40, "test": 1 << 41}


def seeded_noise(indices: Sequence[int], teacher: Teacher, seed: int = 0) -> tuple[Tensor, Any]:
    """Unit-normal noise and conditions of samples, each from its own CPU generator.

    The result for a sample depends on (seed, index) alone: not on the batch, the device or the number of processes.

    Returns:
        Noise of shape (batch, *teacher.shape), float32, and a batched condition or None.
    """
    noises, conds = [], []
    for index in indices:
        generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + int(index) + 1) % (1 << 63))
        noises.append(torch.randn(teacher.shape, generator=generator))
        conds.append(teacher.draw_cond(generator))
    cond = None if conds[0] is None else pytree.tree_map(lambda *leaves: torch.stack(leaves), *conds)
    return torch.stack(noises), cond


@dataclass(frozen=True)
class Trajectory:
    """A batch of reference solutions on a fine grid, readable at any level in between.

    Args:
        path: Path of the reference solver.
        clock: Straight-coordinate clock of the fine grid, decreasing. Shape: (points,).
        states: States in straight coordinates. Shape: (points, batch, ...).
        slopes: dy/du at the same points. Shape as states.
    """

    path: Path
    clock: Tensor
    states: Tensor
    slopes: Tensor

    def at(self, levels: Sequence[Level]) -> Tensor:
        """States at given levels, scaled as the levels are, by cubic Hermite interpolation in the clock.

        Fourth-order accurate in the fine grid's step, exact at its points. Shape: (levels, batch, ...).
        """
        return torch.stack([self._at(level) for level in levels])

    def end(self) -> Tensor:
        """The last state, in the path's own scale. Shape: (batch, ...)."""
        return self.states[-1] * self.path.scale(self.path.from_clock(self.clock[-1]))

    def _at(self, level: Level) -> Tensor:
        u = self.path.clock_of(level)
        right = int(torch.searchsorted(-self.clock, -u).clamp(1, len(self.clock) - 1))
        u0, u1 = self.clock[right - 1], self.clock[right]
        width, tau = u1 - u0, (u - u0) / (u1 - u0)
        y = (
            self.states[right - 1] * ((1 + 2 * tau) * (1 - tau) ** 2)
            + self.states[right] * (tau**2 * (3 - 2 * tau))
            + self.slopes[right - 1] * (width * tau * (1 - tau) ** 2)
            + self.slopes[right] * (width * tau**2 * (tau - 1))
        )
        return y * (level.hypot() / self.path.straight(u).hypot())


@dataclass(frozen=True)
class Reference:
    """The reference solver: a classical family on a fine grid, run eagerly in float64 states.

    Args:
        solver: A family that evaluates the network at the beginning of every step (all classical ones but unipc).
        steps: Steps of the fine grid.
        grid: Kind of the fine grid.
        rho: Its exponent, where it has one.
        nested: M, the EPD teacher grid instead: M more points in every step of the student's own grid.
        inner: Points of the polynomial cut of each interval of a nested grid; 2 cuts nothing.
    """

    solver: str = "ipndm"
    steps: int = 40
    grid: str = "polynomial"
    rho: float | None = None
    nested: int | None = None
    inner: int = 3

    def __post_init__(self) -> None:
        check_fields(self)

    def family(self, path: Path, noise_range: tuple[float, float], rule: Grid | None = None) -> Family:
        """The solver on the teacher's path and range; `rule` is the student's grid, for a nested reference."""
        if self.nested is None:
            return families.build(self.solver, Grid(self.grid, self.steps, *noise_range, self.rho), path)
        if rule is None:
            raise ValueError("a nested reference needs the student's grid rule")
        return families.build(self.solver, nested_grid(rule, path, self.nested, self.inner), path)

    def solve(
        self, teacher: Teacher, denoiser: Any, noise: Tensor, cond: Any = None, rule: Grid | None = None
    ) -> Trajectory:
        """Solve from unit noise; keeps every state and slope. Deterministic."""
        return solve_reference(self.family(teacher.path, teacher.noise_range, rule), denoiser, noise, cond)


class _FirstOfStep(Eager):
    """Keeps the first denoised output of each step, which belongs to the state at the step's beginning."""

    def __init__(self, denoiser: Any, cond: Any) -> None:
        super().__init__(denoiser, cond)
        self.first: tuple[Tensor, Level, Tensor] | None = None

    def __call__(self, x: Tensor, level: Level, told: Level | None = None) -> Tensor:
        denoised = super().__call__(x, level, told)
        if self.first is None:
            self.first = (x, level, denoised)
        return denoised


def solve_reference(family: Family, denoiser: Any, noise: Tensor, cond: Any = None) -> Trajectory:
    """Run a classical family on its grid, keeping the state and the slope at every grid point.

    The states are float64 where the device has it. The slope at the last point costs one more evaluation; at u = 0 it
    is that of the parabola through the last step.
    """
    dtype = torch.float32 if noise.device.type == "mps" else torch.float64
    values = family.prepare({})
    evaluate = _FirstOfStep(denoiser, cond)
    path, clock = family.path, values.clock
    x = noise.to(dtype) * family.initial_scale(values)
    history: tuple[Tensor, ...] = ()
    states, slopes = [x / values.scale[0]], []
    for i in range(family.steps):
        evaluate.first = None
        x, history = family.step(i, x, history, evaluate, values)
        slopes.append(_slope(states[-1], evaluate, path, clock[i]))
        states.append(x / values.scale[i + 1])
    if bool(clock[-1] == 0):
        slopes.append((states[-1] - states[-2]) * (2 / (clock[-1] - clock[-2])) - slopes[-1])
    else:
        denoised = evaluate(states[-1], path.straight(clock[-1]))
        slopes.append((states[-1] - denoised) / clock[-1])
    return Trajectory(path, clock, torch.stack(states), torch.stack(slopes))


def _slope(y: Tensor, evaluate: _FirstOfStep, path: Path, u: Tensor) -> Tensor:
    if evaluate.first is None or not bool(torch.isclose(path.clock_of(evaluate.first[1]), u, rtol=1e-9, atol=0)):
        raise ValueError("a reference solver must evaluate the network at the beginning of every step")
    return (y - evaluate.first[2]) / u


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean squared difference of each sample. Shape: (batch,)."""
    return (a - b).flatten(1).pow(2).mean(1).sqrt()

