"""Reference trajectories: seeded noise, a fine solve of the teacher, and its state at any noise level.

A trajectory is stored in straight coordinates, where ``dy/du = (y - denoised) / u``: states and slopes at every point
of a fine grid. A state between two points is read by cubic Hermite interpolation in u, so that one solve serves every
student, whatever noise levels it has or learns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill import families
from solverdistill.denoiser import Teacher
from solverdistill.families.base import Family
from solverdistill.grids import Grid, grid_values, nested_grid
from solverdistill.noise import Level, Path, float64
from solverdistill.settings import check_fields
from solverdistill.tracing import Eager

TOLERANCE = 1e-6  # of the adaptive reference
MAX_STEPS = 200  # of the adaptive reference, within a step of the fine grid

# Splits draw from disjoint ranges of sample indices, so that held-out samples never meet the training ones. All are
# below 2^32, because torch's CPU generator uses no more bits of its seed.
SPLITS = {"train": 0, "validation": 1 << 30, "test": 2 << 30, "fresh": 3 << 30}


def seeded_noise(indices: Sequence[int], teacher: Teacher, seed: int = 0) -> tuple[Tensor, Any]:
    """Unit-normal noise and conditions of samples, each from its own CPU generator.

    The result for a sample depends on (seed, index) alone: not on the batch, the device or the number of processes.

    Returns:
        Noise of shape (batch, *teacher.shape), float32, and a batched condition or None.
    """
    noises, conds = [], []
    for index in indices:
        generator = _generator_of(index, seed)
        noises.append(torch.randn(teacher.shape, generator=generator))
        conds.append(teacher.draw_cond(generator))
    cond = None if conds[0] is None else pytree.tree_map(lambda *leaves: torch.stack(leaves), *conds)
    return torch.stack(noises), cond


def noise_of(indices: Sequence[int], shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """The noise alone of `seeded_noise`. Shape: (batch, *shape), float32."""
    return torch.stack([torch.randn(shape, generator=_generator_of(index, seed)) for index in indices])


def _generator_of(index: int, seed: int) -> torch.Generator:
    """Generator of one sample: a permutation of the indices below 2^32, so no two of a seed share their noise."""
    if not 0 <= index < 1 << 32:
        raise ValueError(f"sample index {index} is not between 0 and 2^32: there are at most 2^30 samples in a split")
    mixed = int(index) ^ int(hashlib.sha256(str(seed).encode()).hexdigest()[:8], 16)
    return torch.Generator().manual_seed(mixed * 0x9E3779B1 % (1 << 32))


@dataclass  # not frozen: Lightning rebuilds batches field by field when it changes their dtype
class Trajectory:
    """A batch of reference solutions on a fine grid, readable at any level in between.

    Reading between the points costs, as largest RMSE of a sample divided by the scale of its state, 4e-4 (toy mixture)
    or 2e-5 (edm_digits) on the default grid of 40 steps, and 10 to 16 times less on twice as many; storing float32
    instead of float64 costs 2e-7, float16 would cost 5e-4.

    Args:
        path: Path of the reference solver.
        clock: Straight-coordinate clock of the fine grid, decreasing, float64 on the host. Shape: (points,).
        states: States in straight coordinates. Shape: (points, batch, ...).
        slopes: dy/du at the same points. Shape as states.
    """

    path: Path
    clock: Tensor
    states: Tensor
    slopes: Tensor

    def at(self, levels: Sequence[Level]) -> Tensor:
        """States at given levels, scaled as the levels are, by cubic Hermite interpolation in the clock.

        Fourth-order accurate in the fine grid's step, exact at its points, differentiable in the levels. Shape:
        (levels, batch, ...).
        Raises:
            ValueError: a level is noisier than the trajectory's beginning.
        """
        return torch.stack([self._at(level) for level in levels])

    def end(self) -> Tensor:
        """The last state, in the path's own scale. Shape: (batch, ...)."""
        return self.states[-1] * self.path.scale(self.path.from_clock(self.clock[-1]))

    def take(self, index: Tensor) -> Trajectory:
        """The trajectories of some samples of the batch."""
        return replace(self, states=self.states[:, index], slopes=self.slopes[:, index])

    def to(self, *args: Any, **kwargs: Any) -> Trajectory:
        """Move states and slopes as `Tensor.to` does; the clock stays on the host."""
        return replace(self, states=self.states.to(*args, **kwargs), slopes=self.slopes.to(*args, **kwargs))

    def _at(self, level: Level) -> Tensor:
        u = self.path.clock_of(level)
        if bool(u > 2 * self.clock[0] - self.clock[1]):
            raise ValueError(
                f"the reference begins at clock {float(self.clock[0]):g} and has no state at {float(u):g}; "
                "begin the student's grid at or below the teacher's largest noise level"
            )
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
    """The reference solver: a classical family on a fine grid, or adaptive Dormand-Prince read at the points of one.

    Args:
        solver: A family that evaluates the network at the beginning of every step (all classical ones but unipc), or
            "dopri5".
        steps: Steps of the fine grid.
        grid: Kind of the fine grid.
        rho: Its exponent, where it has one.
        nested: M, the EPD teacher grid instead: M more points in every step of the student's own grid.
        inner: Points of the polynomial cut of each interval of a nested grid; 2 cuts nothing.
        rtol: Relative tolerance of dopri5; None takes 1e-6.
        atol: Its absolute tolerance, in units of the data; None takes 1e-6.
    """

    solver: str = "ipndm"
    steps: int = 40
    grid: str = "polynomial"
    rho: float | None = None
    nested: int | None = None
    inner: int = 3
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and self.solver != "dopri5":
                raise ValueError(f"{name}={value} of the reference belongs to dopri5; {self.solver} takes fixed steps")
            if value is not None and value <= 0:
                raise ValueError(f"{name} of the reference must be above 0, not {value}")

    def levels(self, path: Path, noise_range: tuple[float, float], rule: Grid | None = None) -> tuple[float, ...]:
        """The fine grid in the path's own unit; `rule` is the student's grid, for a nested reference."""
        if self.nested is not None and rule is None:
            raise ValueError("a nested reference refines the grid of a student, and none was given")
        start = noise_range[0] if self.nested is None or rule is None else rule.start
        if not bool(torch.isfinite(path.clock(start))):
            raise ValueError(
                f"a reference on the {path.name} path cannot begin at {start:g}, where sigma / alpha is infinite; "
                "begin the teacher's noise range slightly lower"
            )
        if self.nested is None or rule is None:
            return grid_values(Grid(self.grid, self.steps, *noise_range, self.rho), path)
        return nested_grid(rule, path, self.nested, self.inner)

    def solve(
        self, teacher: Teacher, denoiser: Any, noise: Tensor, cond: Any = None, rule: Grid | None = None
    ) -> Trajectory:
        """Solve from unit noise; keeps the state and slope at every point of the fine grid. Deterministic."""
        levels = self.levels(teacher.path, teacher.noise_range, rule)
        if self.solver == "dopri5":
            tolerance = (self.rtol or TOLERANCE, self.atol or TOLERANCE)
            return solve_adaptive(teacher.path, levels, denoiser, noise, cond, *tolerance)
        return solve_reference(families.build(self.solver, levels, teacher.path), denoiser, noise, cond)

    def description(self, path: Path, noise_range: tuple[float, float], rule: Grid | None = None) -> dict[str, Any]:
        """Everything that decides the solution, JSON-able; noise levels to 12 digits, past which CPUs differ."""
        levels = [float(f"{value:.12g}") for value in self.levels(path, noise_range, rule)]
        described: dict[str, Any] = {"solver": self.solver, "path": path.hyperparameters(), "grid": levels}
        if self.solver == "dopri5":
            described |= {"rtol": self.rtol or TOLERANCE, "atol": self.atol or TOLERANCE}
        return described


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
    dtype = _dtype(noise)
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
    slopes.append(_last_slope(states, slopes, evaluate, path, clock))
    return Trajectory(path, clock, torch.stack(states), torch.stack(slopes))


def _slope(y: Tensor, evaluate: _FirstOfStep, path: Path, u: Tensor) -> Tensor:
    if evaluate.first is None or not bool(torch.isclose(path.clock_of(evaluate.first[1]), u, rtol=1e-9, atol=0)):
        raise ValueError("a reference solver must evaluate the network at the beginning of every step")
    return (y - evaluate.first[2]) / u


def _last_slope(states: list[Tensor], slopes: list[Tensor], evaluate: Eager, path: Path, clock: Tensor) -> Tensor:
    if bool(clock[-1] == 0):
        return (states[-1] - states[-2]) * (2 / (clock[-1] - clock[-2])) - slopes[-1]
    return (states[-1] - evaluate(states[-1], path.straight(clock[-1]))) / clock[-1]


def _dtype(noise: Tensor) -> torch.dtype:
    return torch.float32 if noise.device.type == "mps" else torch.float64


def solve_adaptive(
    path: Path,
    levels: Sequence[float],
    denoiser: Any,
    noise: Tensor,
    cond: Any = None,
    rtol: float = TOLERANCE,
    atol: float = TOLERANCE,
) -> Trajectory:
    """Adaptive Dormand-Prince 5(4) in straight coordinates, stepping onto every point of a fine grid.

    The error that controls the step is that of the worst sample of the batch, so every sample meets the tolerance; but
    the steps, and with them the last digits of a sample, depend on its companions. Targets are therefore solved in
    fixed chunks. Where the grid ends at u = 0, the last thousandth of its last step is one Euler step.
    Reference: Dormand, Prince, "A family of embedded Runge-Kutta formulae", 1980; torchdiffeq.

    Raises:
        ValueError: the tolerance is below the rounding noise of the network.
    """
    from torchdiffeq import odeint

    clock, evaluate = path.clock(float64(levels)), Eager(denoiser, cond)
    last = clock[-2] * 1e-3 if bool(clock[-1] == 0) else clock[-1]
    times = torch.cat([clock[:-1], last[None]]).to(noise.device, _dtype(noise))

    def slope(u: Tensor, y: Tensor) -> Tensor:
        return (y - evaluate(y, path.straight(u))) / u

    def worst(y: Tensor) -> Tensor:
        return y.view(noise.shape).flatten(1).pow(2).mean(1).sqrt().max()

    y = noise.to(times.dtype) * (path.initial_scale(levels[0]) / path.scale(levels[0]))
    options = {"step_t": times, "norm": worst, "max_num_steps": MAX_STEPS}
    try:
        solved: Any = odeint(slope, y, times, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:  # torchdiffeq's way to say that there are too many steps, or too small ones
        raise ValueError(
            f"dopri5 cannot reach rtol={rtol:g}, atol={atol:g} ({error}); allow more, or take a fixed-step reference"
        ) from None
    states = [*solved.unbind()]
    slopes = [slope(u, state) for u, state in zip(times, states, strict=True)]
    states[-1] = states[-1] + slopes[-1] * (clock[-1] - last)
    return Trajectory(path, clock, torch.stack(states), torch.stack(slopes))


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean squared difference of each sample. Shape: (batch,)."""
    return (a - b).flatten(1).pow(2).mean(1).sqrt()
