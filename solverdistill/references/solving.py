"""Reference trajectories: seeded noise, a fine solve of the teacher, and its state at any noise level.

A trajectory is stored in straight coordinates, where ``dy/du = (y - denoised) / u``: states and slopes at every point
of a fine grid. A state between two points is read by cubic Hermite interpolation in u, so that one solve serves every
student, whatever noise levels it has or learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solverdistill import families
from solverdistill.denoisers.base import Teacher, per_sample
from solverdistill.families.base import Family
from solverdistill.noise.grids import Grid, grid_values, nested_grid
from solverdistill.noise.levels import Level, float64
from solverdistill.noise.paths import Path
from solverdistill.programs.tracing import Eager
from solverdistill.references.trajectory import Trajectory
from solverdistill.support.type_checks import check_fields, check_ranges

TOLERANCE = 1e-6  # of the adaptive reference
MOST_STEPS = 1000  # of a fine grid, ten times what a reference needs
MAX_STEPS = 200  # of the adaptive reference, within a step of the fine grid


@dataclass(frozen=True)
class Reference:
    """The reference solver: a classical family on a fine grid, or adaptive Dormand-Prince read at the points of one.

    Args:
        solver: A family that evaluates the network at the beginning of every step (all classical ones but unipc), or
            "dopri5".
        steps: Steps of the fine grid.
        grid: Kind of the fine grid.
        rho: Its exponent, where it has one; None is the usual one of its kind.
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
        Grid(self.grid, self.steps, rho=self.rho)
        check_ranges(self, "targets.reference.", "steps", most=MOST_STEPS)
        check_ranges(self, "targets.reference.", "nested", least=0, most=MOST_STEPS)
        check_ranges(self, "targets.reference.", "inner", least=2, most=MOST_STEPS)
        check_ranges(self, "targets.reference.", "rtol", "atol", above=0)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and self.solver != "dopri5":
                raise ValueError(f"{name}={value} of the reference belongs to dopri5; {self.solver} takes fixed steps")

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

    def evaluations(self, path: Path, noise_range: tuple[float, float], rule: Grid | None = None) -> int:
        """Evaluations per sample, at most; of dopri5, which chooses its steps as it goes, the fewest."""
        levels = self.levels(path, noise_range, rule)
        if self.solver == "dopri5":
            return 7 * len(levels)  # six per step, and the slope at every point
        return families.build(self.solver, levels, path).nfe + 1

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
    fixed chunks. A sample for which the network gives something that is not finite stands still from there on, so that
    the others go on, and is not finite in the result. Where the grid ends at u = 0, the last thousandth of its last
    step is one Euler step.
    Reference: Dormand, Prince, "A family of embedded Runge-Kutta formulae", 1980; torchdiffeq.

    Raises:
        ValueError: the tolerance is below the rounding noise of the network.
    """
    from torchdiffeq import odeint

    clock, evaluate = path.clock(float64(levels)), Eager(denoiser, cond)
    last = clock[-2] * 1e-3 if bool(clock[-1] == 0) else clock[-1]
    times = torch.cat([clock[:-1], last[None]]).to(noise.device, _dtype(noise))

    broken = torch.zeros(len(noise), device=noise.device, dtype=times.dtype)  # clock at which a sample first was

    def slope(u: Tensor, y: Tensor) -> Tensor:
        found = (y - evaluate(y, path.straight(u))) / u
        broken.copy_(torch.where(torch.isfinite(found).flatten(1).all(1), broken, torch.maximum(broken, u)))
        return torch.where(per_sample(broken > 0, found), 0.0, found)

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
    standing = torch.stack([per_sample(broken >= u, noise) for u in times])
    whole = (torch.where(standing, torch.nan, torch.stack(parts)) for parts in (states, slopes))
    return Trajectory(path, clock, *whole)
