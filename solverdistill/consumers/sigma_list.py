"""Plain-text lists of noise levels, for runtimes that take nothing else.

A list is the grid of a solver without its coefficients. It says everything about Euler (DDIM) alone; of any other
solver the runtime plays its own method on that grid, and `sigma_list` says what is lost.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from solverdistill.programs.program import SolverProgram


def sigma_list(program: SolverProgram, flow: bool = False) -> tuple[list[float], str | None]:
    """The levels of a solver and, in a sentence, what a list of levels does not hold of it.

    Args:
        program: The solver; a program of one input.
        flow: Write the flow time sigma / (alpha + sigma) instead of the EDM level sigma / alpha.
    Returns:
        Strictly decreasing levels of the evaluations and a closing 0; and None where nothing is lost.
    Raises:
        ValueError: the levels are not one decreasing grid (parallel or repeated evaluations, told levels that differ
            from those of the states), or are infinite.
    """
    program = program.detach()
    told = _levels(program.alpha, program.sigma, flow)
    states = torch.cat([program.level[: program.nfe], program.level[-1:]])
    *own, end = _levels(states[:, 0], states[:, 1], flow)
    unit = "flow times" if flow else "sigmas"
    if not all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(told, own, strict=True)):
        raise ValueError("this solver tells the network other levels than its states have; no list of levels plays it")
    if not told or not all(a > b for a, b in pairwise([*told, end])):
        raise ValueError("this solver evaluates the network at repeated or parallel levels; no list of levels plays it")
    if math.isinf(told[0]):
        raise ValueError(f"this solver starts at pure noise, which has no finite sigma; write its {unit} as flow times")
    lost: list[str] = []
    if not torch.allclose(_ratios(program), _euler(program), rtol=1e-6, atol=1e-9):
        lost.append("its coefficients: a runtime plays its own method on these levels, exact for Euler alone")
    if end > 0:
        lost.append(f"its end at {end:.6g}: the list goes on to 0")
    return [*told, 0.0], f"a list of {unit} does not hold {'; nor '.join(lost)}" if lost else None


def write_sigmas(levels: list[float]) -> str:
    """One line, shortest decimals that read back the same numbers, separated by commas."""
    return ", ".join(map(repr, levels)) + "\n"


def _levels(alpha: torch.Tensor, sigma: torch.Tensor, flow: bool) -> list[float]:
    return (sigma / (alpha + sigma if flow else alpha)).tolist()


def _ratios(program: SolverProgram) -> torch.Tensor:
    """Rows for states in the scale alpha = 1, but pure noise in its own."""
    alpha = torch.cat([program.alpha, program.level[-1:, 0]])
    table = torch.cat([program.A, program.B], dim=1)[[*range(program.nfe), -1]]
    return table / torch.where(alpha == 0, 1.0, alpha)[:, None]


def _euler(program: SolverProgram) -> torch.Tensor:
    """What these rows are for Euler: x' = (sigma' / sigma) x + (alpha' - sigma' alpha / sigma) denoised."""
    alpha = torch.cat([program.alpha, program.level[-1:, 0]])
    sigma = torch.cat([program.sigma, program.level[-1:, 1]])
    rows = [torch.nn.functional.one_hot(torch.tensor(0), program.nfe + 1).double() * program.A[0, 0]]
    for k in range(program.nfe):
        row = rows[-1] * (sigma[k + 1] / sigma[k])
        row[k + 1] += alpha[k + 1] - sigma[k + 1] * alpha[k] / sigma[k]
        rows.append(row)
    return torch.stack(rows) / torch.where(alpha == 0, 1.0, alpha)[:, None]
