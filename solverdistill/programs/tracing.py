"""Records a solver written in ordinary arithmetic as a `SolverProgram`, or runs the same source on tensors.

A family writes the loop of its paper on a state ``x`` with an evaluator ``denoise(x, level, told=None)``. Given a
`Trace`, `x` is a `Register` (a linear combination of inputs and denoised outputs) and nothing is computed but its
coefficients; given an `Eager` evaluator, `x` is a tensor and the network runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from solverdistill.noise.levels import Level, float64
from solverdistill.programs.program import SolverProgram

NOT_LINEAR = (
    "only sums of states and products with scalars can be traced to a solver table; adaptive steps, thresholding and "
    "coefficients that depend on the image cannot (thresholding belongs in a wrapper of the denoiser)"
)


def told_level(level: Level, told: Level | None) -> Level:
    """The level the network is told: the state's own one unless stated; a negative alpha is set to 0."""
    alpha, sigma = level if told is None else told
    return Level(float64(alpha).clamp(min=0), float64(sigma))


class Register:
    """A linear combination of a trace's inputs and denoised outputs; supports exactly the affine operations.

    Attributes:
        row: Coefficients, inputs first, then the evaluations known when the register was made. float64.
        support: Indices that can be non-zero.
    """

    __slots__ = ("row", "support")
    __array_ufunc__ = None

    def __init__(self, row: Tensor, support: frozenset[int]) -> None:
        self.row, self.support = row, support

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let ``tensor * register`` reach `__rmul__`, and refuse every other torch function by name."""
        name = getattr(func, "__name__", str(func))
        if name in ("mul", "multiply", "__mul__", "__rmul__") and len(args) == 2:
            return args[1] * args[0] if isinstance(args[1], Register) else args[0] * args[1]
        raise TypeError(f"{name} was applied to a traced state: {NOT_LINEAR}")

    def _plus(self, other: Any, sign: float) -> Register:
        if not isinstance(other, Register):
            if isinstance(other, (int, float)) and other == 0:
                return self
            raise TypeError(f"a constant was added to a traced state: {NOT_LINEAR}")
        width = max(len(self.row), len(other.row))
        rows = [_pad(register.row, width) for register in (self, other)]
        return Register(torch.add(rows[0], rows[1], alpha=sign), self.support | other.support)

    def __add__(self, other: Any) -> Register:
        return self._plus(other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Register:
        return self._plus(other, -1.0)

    def __rsub__(self, other: Any) -> Register:
        return (-self)._plus(other, 1.0)

    def __neg__(self) -> Register:
        return Register(-self.row, self.support)

    def __mul__(self, factor: Any) -> Register:
        if isinstance(factor, Register) or (isinstance(factor, Tensor) and factor.ndim > 0):
            raise TypeError(f"two states, or a state and an image, were multiplied: {NOT_LINEAR}")
        return Register(self.row * factor, self.support)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Register:
        if isinstance(divisor, Register) or (isinstance(divisor, Tensor) and divisor.ndim > 0):
            raise TypeError(f"a state was divided by a state or an image: {NOT_LINEAR}")
        return Register(self.row / divisor, self.support)

    @staticmethod
    def combination(registers: Sequence[Register], weights: Sequence[Any]) -> Register:
        """Sum of registers times numbers, one each, in as many operations for many registers as for two.

        Adds in the order of the registers, as a loop does, whatever the machine: a solver's file has every digit.
        """
        numbers = torch.stack([float64(weight) for _, weight in zip(registers, weights, strict=True)])
        rows = pad_sequence([register.row for register in registers], batch_first=True)
        total = (rows * numbers[:, None]).cumsum(0)[-1]
        return Register(total, frozenset[int]().union(*(register.support for register in registers)))

    def __bool__(self) -> bool:
        raise TypeError(f"a branch depends on a traced state: {NOT_LINEAR}")


def _pad(row: Tensor, width: int) -> Tensor:
    return row if len(row) == width else torch.nn.functional.pad(row, (0, width - len(row)))


class Trace:
    """Evaluator that records rows instead of calling a network.

    Args:
        inputs: Number of input registers, found in `self.inputs`.
    """

    def __init__(self, inputs: int = 1) -> None:
        eye = torch.eye(inputs, dtype=torch.float64)
        self.inputs = tuple(Register(eye[i], frozenset([i])) for i in range(inputs))
        self._rows: list[Register] = []
        self._readouts: list[Register] = []
        self._told: list[Level] = []
        self._levels: list[Level] = []
        self._readout_levels: list[Level] = []
        self._stage_of: list[int] = []

    def __call__(self, x: Register, level: Level, told: Level | None = None) -> Register:
        """Record one evaluation.

        Args:
            x: State whose own noise level is `level`.
            told: Level told to the network where it differs. The row is divided by its hypot.
        Returns:
            The register of the denoised output.
        """
        told = told_level(level, told)
        scale = told.hypot()
        index, width = len(self._rows), len(self.inputs)
        self._rows.append(x / scale)
        self._told.append(Level(told.alpha / scale, told.sigma / scale))
        self._levels.append(Level(float64(level.alpha) / scale, float64(level.sigma) / scale))
        needed = [self._stage_of[j - width] for j in x.support if j >= width]
        self._stage_of.append(1 + max(needed, default=-1))
        unit = torch.zeros(width + index + 1, dtype=torch.float64)
        unit[-1] = 1.0
        return Register(unit, frozenset([width + index]))

    def readout(self, x: Register, level: Level) -> None:
        """Record the state after a step."""
        self._readouts.append(x)
        self._readout_levels.append(level)

    def program(self) -> SolverProgram:
        """The table of everything recorded; its last readout is the sample."""
        nfe, inputs = len(self._rows), len(self.inputs)
        registers = self._rows + self._readouts
        table = torch.stack([_pad(register.row, inputs + nfe) for register in registers])
        mask = torch.zeros(len(registers), inputs + nfe, dtype=torch.bool)
        for r, register in enumerate(registers):
            mask[r, list(register.support)] = True
        own = [torch.stack([float64(v) for v in level]) for level in self._levels + self._readout_levels]
        empty = torch.zeros(0, dtype=torch.float64)
        depth = 1 + max(self._stage_of, default=-1)
        return SolverProgram(
            alpha=torch.stack([told.alpha for told in self._told]) if nfe else empty,
            sigma=torch.stack([told.sigma for told in self._told]) if nfe else empty,
            A=table[:, :inputs],
            B=table[:, inputs:],
            mask=mask,
            stages=tuple(tuple(k for k in range(nfe) if self._stage_of[k] == stage) for stage in range(depth)),
            level=torch.stack(own).detach(),
        )


class Eager:
    """Evaluator that calls the network: the same source on real tensors, for long reference solves.

    Args:
        denoiser: The network, as `solverdistill.denoisers.base.Denoiser`.
        cond: Its condition for the whole batch.
    """

    def __init__(self, denoiser: Callable[..., Tensor], cond: Any = None) -> None:
        self.denoiser, self.cond, self.nfe = denoiser, cond, 0

    def __call__(self, x: Tensor, level: Level, told: Level | None = None) -> Tensor:
        told = told_level(level, told)
        scale = told.hypot()
        alpha, sigma = ((v / scale).to(x.device, x.dtype).expand(x.shape[0]) for v in told)
        args = (x / scale, alpha, sigma) if self.cond is None else (x / scale, alpha, sigma, self.cond)
        self.nfe += 1
        return self.denoiser(*args).to(x.dtype)
