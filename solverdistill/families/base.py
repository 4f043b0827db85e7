"""What every solver family is: hyperparameters, params, and a step written in ordinary arithmetic.

A family is a frozen dataclass. Its `step` is the loop body of its paper, run on registers (to record the table) or on
tensors (`solve`, eager). `state` lives in the scale of the family's path; `history` is a tuple of whatever earlier
values the step wants back, newest first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from solverdistill.noise.levels import Level, float64, make_level
from solverdistill.noise.paths import Path
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.tracing import Eager, Register, Trace

State = Any  # a Register while tracing, a Tensor when run eagerly
History = tuple[State, ...]
Evaluator = Callable[..., State]  # denoise(x, level, told=None) -> denoised
Params = dict[str, Tensor]


class Timeline:
    """Noise levels of a grid with everything a solver asks about them, differentiable in `s`.

    Args:
        path: The path that `s` is measured on.
        s: Decreasing noise levels. Shape: (steps + 1,).
        told: Noise levels told to the network at each grid point where they differ. Shape: (steps + 1,) or (steps,).
    """

    def __init__(self, path: Path, s: Tensor, told: Tensor | None = None) -> None:
        self.path, self.s, self._told = path, float64(s), told
        self.alpha, self.sigma = path.level(self.s)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.s) - 1

    # Kept tensors are made outside inference mode, where they could never take part in training again.
    @cached_property
    def half_log_snr(self) -> Tensor:
        """log(alpha / sigma); infinite at alpha = 0 and at sigma = 0."""
        with torch.inference_mode(False):
            return self.path.half_log_snr(self.s)

    @cached_property
    def clock(self) -> Tensor:
        """Straight-coordinate time u."""
        with torch.inference_mode(False):
            return self.path.clock(self.s)

    @cached_property
    def scale(self) -> Tensor:
        """State = scale * straight-coordinate state."""
        with torch.inference_mode(False):
            return self.path.scale(self.s)

    def level(self, i: int) -> Level:
        """(alpha, sigma) of the state at grid point i."""
        return Level(self.alpha[i], self.sigma[i])

    def told(self, i: int) -> Level:
        """(alpha, sigma) told to the network at grid point i."""
        return self.level(i) if self._told is None else self.path.level(self._told[i])

    def straight_told(self, i: int) -> Level:
        """The same level in the scale of straight coordinates, for a state that lives in these."""
        return self.path.straight(self.clock[i] if self._told is None else self.path.clock(self._told[i]))

    def singular(self, i: int) -> bool:
        """Whether step i begins at pure noise (alpha = 0) or ends at clean data (sigma = 0)."""
        return bool(self.alpha[i] == 0) or bool(self.sigma[i + 1] == 0)


def combine(states: Iterable[State], weights: Iterable[Any]) -> State:
    """Sum of states times numbers, one each."""
    states, weights = list(states), list(weights)
    if states and isinstance(states[0], Register):
        return Register.combination(states, weights)
    total: State = 0
    for state, weight in zip(states, weights, strict=True):
        total = total + state * weight
    return total


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """A parametrised solver.

    Args:
        grid: Strictly decreasing noise levels in the path's own unit; families that learn times keep its ends.
        path: The noise path that the family is written on.
        denoise_to_zero: Replace the final state by the denoised image there, at the price of one evaluation.
    """

    grid: tuple[float, ...]
    path: Path
    denoise_to_zero: bool = False

    name: ClassVar[str]

    @property
    def steps(self) -> int:
        """Number of steps of the grid."""
        return len(self.grid) - 1

    @cached_property
    def timeline(self) -> Timeline:
        """The fixed grid."""
        with torch.inference_mode(False):
            return Timeline(self.path, float64(self.grid))

    def init(self, seed: int = 0) -> Params:
        """Initial params under their official names, float64; a classical solver has none."""
        return {}

    def starts(self) -> tuple[dict[str, Any], ...]:
        """Changes of hyperparameters after which `init` begins elsewhere; a race of starts chooses among them."""
        return ({},)

    @cached_property
    def learns_levels(self) -> bool:
        """Whether the noise levels of its grid depend on the params."""
        with torch.inference_mode(False), torch.enable_grad():
            params = {name: value.clone().requires_grad_() for name, value in self.init(0).items()}
            levels = self.prepared_levels(params)
        return any(value.requires_grad for level in levels for value in level)

    @property
    def linear_params(self) -> tuple[str, ...]:
        """Names of the params in which every row of the table is affine once the rows before it are given.

        Each entry first acts in one row, the next state that it moves; least squares finds the entries row by row.
        """
        return ()

    def prepare(self, params: Params) -> Any:
        """Turn raw params (float64, on the host) into what `step` reads: constrained values, a `Timeline` or both.

        Learned noise levels are a `Timeline`, or the attribute `timeline` of what is returned; `levels` finds it there.
        """
        return self.timeline

    def prepared_levels(self, params: Params | None = None) -> list[Level]:
        """Level of the first state and of every readout, differentiable in the params where times are learned."""
        levels = self.levels(self._prepare(params))
        return [*levels, make_level(1.0, 0.0)] if self.denoise_to_zero else levels

    def start_scale(self, params: Params | None = None) -> Tensor:
        """Factor that turns unit noise into the state at the first grid point."""
        return self.initial_scale(self._prepare(params))

    @abstractmethod
    def step(self, i: int, x: State, history: History, denoise: Evaluator, values: Any) -> tuple[State, History]:
        """Advance the state from grid point i to i + 1."""

    def timeline_of(self, values: Any) -> Timeline:
        """The grid that `prepare` returned, alone or as `timeline` of its values; the fixed one where there is none."""
        found = values if isinstance(values, Timeline) else getattr(values, "timeline", None)
        return found if isinstance(found, Timeline) else self.timeline

    def levels(self, values: Any) -> list[Level]:
        """Level of the state at every grid point; for families whose learned times are in no `Timeline`."""
        timeline = self.timeline_of(values)
        return [timeline.level(i) for i in range(self.steps + 1)]

    def initial_scale(self, values: Any) -> Tensor:
        """Factor that turns unit noise into the initial state."""
        return self.path.initial_scale(self.grid[0])

    def roll_out(self, noise: State, denoise: Evaluator, values: Any) -> Iterator[tuple[State, Level]]:
        """Yield the state after every step, with its level."""
        x: State = noise * self.initial_scale(values)
        history: History = ()
        levels = self.levels(values)
        for i in range(self.steps):
            x, history = self.step(i, x, history, denoise, values)
            yield x, levels[i + 1]
        if self.denoise_to_zero:
            yield denoise(x, levels[-1]), make_level(1.0, 0.0)

    def program(self, params: Params | None = None) -> SolverProgram:
        """Trace the whole solver to its table, differentiable in the params."""
        trace = Trace()
        for x, level in self.roll_out(trace.inputs[0], trace, self._prepare(params)):
            trace.readout(x, level)
        return trace.program()

    def step_program(self, i: int, params: Params | None = None) -> SolverProgram:
        """Trace step i alone, for objectives that start a step from given states.

        Its inputs are the state at grid point i, in the path's scale, and the history that the step wants, newest
        first. Its readouts are the next step's history and, last, the next state: the next step's inputs are
        ``(readouts[-1], *readouts[:-1])``. History entries are not states; they carry the level of the new state.
        """
        if not 0 <= i < self.steps:
            raise ValueError(f"{self.name} has steps 0 to {self.steps - 1}, not {i}")
        values = self._prepare(params)
        trace = Trace(inputs=1 + self._history_lengths[i])
        x, history = self.step(i, trace.inputs[0], trace.inputs[1:], trace, values)
        level = self.levels(values)[i + 1]
        for entry in (*history, x):
            trace.readout(entry, level)
        return trace.program()

    def solve(self, denoiser: Any, noise: Tensor, params: Params | None = None, cond: Any = None) -> Iterator[Tensor]:
        """Run the same steps eagerly and yield the state after each, in the dtype of `noise`.

        Equals ``sample(self.program(params), ...)`` up to rounding; meant for reference solves, whose tables would be
        large.
        """
        for x, _ in self.roll_out(noise, Eager(denoiser, cond), self._prepare(params)):
            yield x

    def solve_step(
        self, i: int, x: Tensor, history: History, denoiser: Any, params: Params | None = None, cond: Any = None
    ) -> tuple[Tensor, History]:
        """Run step i eagerly on given states."""
        return self.step(i, x, history, Eager(denoiser, cond), self._prepare(params))

    @cached_property
    def _table(self) -> SolverProgram:
        return self.program(self.init(0)).detach()

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser per sample."""
        return self._table.nfe

    @property
    def depth(self) -> int:
        """Sequential network calls per sample."""
        return self._table.depth

    def hyperparameters(self) -> dict[str, Any]:
        """JSON-able arguments with which `families.build` makes this family again.

        A family of this package goes by its name, any other by the dotted name of its class.
        """
        cls, options = type(self), {f.name: getattr(self, f.name) for f in fields(self)}
        package = __name__.split(".")[0]
        name = self.name if cls.__module__.split(".")[0] == package else f"{cls.__module__}.{cls.__qualname__}"
        return {"name": name, **options, "grid": list(self.grid), "path": self.path.hyperparameters()}

    def _prepare(self, params: Params | None) -> Any:
        expected = self.init(0)
        params = {} if params is None else dict(params)
        if set(params) != set(expected):
            raise ValueError(f"{self.name} takes params {sorted(expected)}, not {sorted(params)}")
        for name, value in params.items():
            if tuple(value.shape) != tuple(expected[name].shape):
                shapes = f"{tuple(value.shape)}, expected {tuple(expected[name].shape)}"
                raise ValueError(f"param {name} of {self.name} has shape {shapes}")
        return self.prepare({name: value.to(device="cpu", dtype=torch.float64) for name, value in params.items()})

    @cached_property
    def _history_lengths(self) -> list[int]:
        """Entries of the history that every step gets, whatever the params."""
        trace, values = Trace(), self._prepare(self.init(0))
        x: State = trace.inputs[0]
        history: History = ()
        lengths = [0]
        for i in range(self.steps - 1):
            x, history = self.step(i, x, history, trace, values)
            lengths.append(len(history))
        return lengths
