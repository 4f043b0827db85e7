"""A fixed-step solver as a table, and the one executor that plays it.

Every deterministic fixed-step sampler, learned or classical, forms linear combinations of its inputs (the initial
noise) and of the denoised outputs seen so far, and calls the network on them::

    x_k        = A_k . inputs + sum_{j<k} B_kj denoised_j        evaluation rows k = 0 .. nfe - 1
    denoised_k = denoiser(x_k, alpha_k, sigma_k)
    readout_r  = A_r . inputs + sum_j     B_rj denoised_j        readout rows; the last one is the sample

Evaluations that do not depend on each other form a *stage* and go to the network as one batch.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Part of a table: coefficients and the noise level of the state that each row forms."""

    A: Tensor
    B: Tensor
    alpha: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return self.A.shape[0]


class Coefficients(NamedTuple):
    """The numbers of a table: told levels of shape (K,), A of shape (K + R, I) and B of shape (K + R, K)."""

    alpha: Tensor
    sigma: Tensor
    A: Tensor
    B: Tensor


@dataclass(frozen=True, eq=False)
class SolverProgram:
    """A solver of K = nfe evaluations and R readouts over I inputs; checks itself when it is made.

    Args:
        alpha: Signal scale told to the network at each evaluation. Shape: (K,).
        sigma: Noise scale told to the network at each evaluation. Shape: (K,).
        A: Coefficients of the inputs, evaluation rows first, then readout rows. Shape: (K + R, I).
        B: Coefficients of the denoised outputs. Shape: (K + R, K).
        mask: Entries of [A, B] that may be non-zero, by structure and not by value. Shape: (K + R, I + K).
        stages: Indices of the evaluations that run as one batch, stage by stage.
        level: Own (alpha, sigma) of the state that each row forms. Shape: (K + R, 2).
    Raises:
        ValueError: a shape is wrong, a number is not finite, a row is not causal, an entry outside the mask is not
            zero, or two evaluations of a stage depend on each other.
    """

    alpha: Tensor
    sigma: Tensor
    A: Tensor
    B: Tensor
    mask: Tensor
    stages: tuple[tuple[int, ...], ...]
    level: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(tuple(int(k) for k in stage) for stage in self.stages))
        problem = _find_problem(self)
        if problem:
            raise ValueError(f"not a solver program: {problem}")

    @property
    def nfe(self) -> int:
        """Number of denoiser evaluations per sample."""
        return self.alpha.shape[0]

    @property
    def depth(self) -> int:
        """Number of sequential network calls: the stages."""
        return len(self.stages)

    @property
    def inputs(self) -> int:
        """Number of input tensors; 1 (the noise) for a whole solver, more for a step program."""
        return self.A.shape[1]

    @property
    def coefficients(self) -> Coefficients:
        """Everything that the states depend on, apart from the inputs and the denoiser."""
        return Coefficients(self.alpha, self.sigma, self.A, self.B)

    @property
    def evaluations(self) -> Rows:
        """The rows that form the network's inputs."""
        return Rows(self.A[: self.nfe], self.B[: self.nfe], *self.level[: self.nfe].unbind(1))

    @property
    def readouts(self) -> Rows:
        """The rows that form the state after every step, in the solver's own scale; the last one is the sample."""
        return Rows(self.A[self.nfe :], self.B[self.nfe :], *self.level[self.nfe :].unbind(1))

    def to(self, device: torch.device | str) -> SolverProgram:
        """The same program with its tensors on `device`."""
        names = ("alpha", "sigma", "A", "B", "mask", "level")
        return self._with({name: getattr(self, name).to(device) for name in names})

    def detach(self) -> SolverProgram:
        """The same program without gradients, its numbers unchanged."""
        return self._with({name: getattr(self, name).detach() for name in ("alpha", "sigma", "A", "B", "level")})

    def _with(self, tensors: dict[str, Tensor]) -> SolverProgram:
        """A copy with other tensors of the same values, which are not checked again."""
        other = copy(self)
        vars(other).update(tensors)
        return other


def _find_problem(program: SolverProgram) -> str | None:
    """Say in a clause what is wrong with a table, or None."""
    nfe, rows, inputs = program.alpha.shape[0], *program.A.shape
    shapes = {"sigma": (nfe,), "B": (rows, nfe), "mask": (rows, inputs + nfe), "level": (rows, 2)}
    for name, shape in shapes.items():
        if tuple(getattr(program, name).shape) != shape:
            return f"{name} has shape {tuple(getattr(program, name).shape)}, expected {shape}"
    if inputs < 1 or rows <= nfe:
        return f"it needs at least one input and one readout row, not {inputs} and {rows - nfe}"
    for name in ("alpha", "sigma", "A", "B", "level"):
        if not bool(torch.isfinite(getattr(program, name).detach().float()).all()):
            return f"{name} has a number that is not finite, or not in single precision"
    told = torch.stack([program.alpha, program.sigma]).detach()
    if bool((told < 0).any() | (told.sum(0) == 0).any()):
        return "a noise level told to the network is negative or (0, 0)"
    history = program.mask[:, inputs:]
    anticipating = history[:nfe].triu().nonzero()
    if len(anticipating):
        k, j = anticipating[0].tolist()
        return f"evaluation row {k} is not causal: it may use denoised output {j}"
    table = torch.cat([program.A, program.B], dim=1).detach()
    outside = ((table != 0) & ~program.mask).nonzero()
    if len(outside):
        return f"entry {outside[0].tolist()} is not zero but lies outside the mask"
    return _find_stage_problem(program.stages, nfe, history)


def _find_stage_problem(stages: tuple[tuple[int, ...], ...], nfe: int, history: Tensor) -> str | None:
    if sorted(k for stage in stages for k in stage) != list(range(nfe)) or not all(stages):
        return f"stages {list(map(list, stages))} do not hold each of the {nfe} evaluations once"
    done: set[int] = set()
    for stage in stages:
        for k in stage:
            missing = set(history[k].nonzero().flatten().tolist()) - done
            if missing:
                return f"evaluation {k} runs before or beside evaluation {min(missing)}, which it depends on"
        done.update(stage)
    return None
