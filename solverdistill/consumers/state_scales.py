"""The levels of a solver file in the two conventions of k-diffusion and ComfyUI.

========  ====================  ============================  ============================================
name      state                 its sigma                     models
========  ====================  ============================  ============================================
edm       x_0 + sigma n         sigma / alpha                 eps, v and EDM models wrapped by k-diffusion
flow      (1 - t) x_0 + t n     t = sigma / (alpha + sigma)   flow models, in ComfyUI
========  ====================  ============================  ============================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from solverdistill import families
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.restarting import restarted
from solverdistill.programs.solver_file import SolverFile

CONVENTIONS = ("edm", "flow")
TOLERANCE = 1e-4  # relative, of sigmas that have been float32 or printed
PURE_NOISE = "this solver asks the network about pure noise, which has no sigma: play it on a flow model"
Solver = SolverProgram | SolverFile


def program_of(solver: Solver) -> SolverProgram:
    """The table of a file, or the table itself."""
    return solver if isinstance(solver, SolverProgram) else solver.program


def sigmas_of(solver: Solver, convention: str | None = None, denoise: float = 1.0) -> Tensor:
    """The sigmas that a solver is played with: of its first state, then of the state after every step.

    Where a solver file holds its family, the first state is that of the family's grid. Of a table alone it is the first
    one that the network sees: an analytical step before it is a factor of the noise, and is left out.

    Args:
        solver: A program, or a file as `read_solver` gives it.
        convention: "edm" or "flow"; None takes that of the teacher named in the file, and "edm" for a program.
        denoise: Below 1, the share of the steps to take, the last ones and at least one: a noised image goes on from
            the level that the network is told there (`programs.restarting`).
    Returns:
        Decreasing sigmas, float32. Shape: (steps + 1,).
    Raises:
        ValueError: the convention is unknown, the solver starts at pure noise, which has no sigma in "edm", or denoise
            is not above 0 and at most 1.
    """
    convention = convention_of(solver) if convention is None else convention
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise must be above 0 and at most 1, not {denoise:g}")
    sigmas = _sigmas(solver, convention)
    if denoise < 1:
        wanted = max(1, math.floor((len(sigmas) - 1) * denoise + 0.5))
        tails = [_sigmas(later, convention) for later in _later_starts(solver, convention)]
        sigmas = next((tail for tail in [sigmas, *tails] if len(tail) - 1 <= wanted), tails[-1] if tails else sigmas)
    return torch.tensor(sigmas, dtype=torch.float32)


def convention_of(solver: Solver) -> str:
    """The convention of the teacher named in a solver file: "flow" for flow models, else "edm"."""
    if isinstance(solver, SolverProgram):
        return "edm"
    facts = solver.teacher
    path = facts.get("path") or solver.family.get("path") or {}
    name = path.get("name") if isinstance(path, Mapping) else path
    return "flow" if facts.get("prediction") == "flow" or name == "flow" else "edm"


@dataclass(frozen=True)
class Start:
    """The first state: its level, and the factor that unit noise has in it, in the library's scale."""

    alpha: float
    sigma: float
    noise: float


@dataclass(frozen=True)
class Scale:
    """A solver's levels in one convention, and the rows of its table that are the states after every step."""

    flow: bool
    start: Start
    sigmas: list[float]
    rows: list[int]

    @staticmethod
    def of(solver: Solver, convention: str) -> Scale:
        flow = convention == "flow"
        alpha, sigma, noise = _first_state(solver)
        factor, told = _factor(alpha, sigma, flow), program_of(solver).alpha
        if factor == 0 or (not flow and bool((told == 0).any())):
            raise ValueError(PURE_NOISE)
        return Scale(flow, Start(alpha, sigma, noise / factor), _sigmas(solver, convention), _rows(solver))

    @staticmethod
    def matching(solver: Solver, sigmas: Tensor) -> tuple[SolverProgram, Scale]:
        """What to play, and the convention, where the given sigmas are the solver's, or those of its last steps.

        Raises:
            ValueError: they are neither.
        """
        given = [float(value) for value in sigmas]
        own = [name for name in (convention_of(solver), *CONVENTIONS) if _first_state(solver)[0] > 0 or name == "flow"]
        for convention in own:
            if _agree(given, _sigmas(solver, convention)):
                return program_of(solver), Scale.of(solver, convention)
        for convention in own:
            for later in _later_starts(solver, convention):
                if _agree(given, _sigmas(later, convention)):
                    return later, Scale.of(later, convention)
        expected = _sigmas(solver, own[0])
        raise ValueError(
            f"these sigmas are not the solver's: it was fitted to {len(expected) - 1} steps from {expected[0]:.6g} to "
            f"{expected[-1]:.6g} and plays these or its last ones, got {len(given) - 1} from "
            f"{given[0] if given else math.nan:.6g}; take them from sigmas_of(solver), or from the SIGMAS output of "
            "the node that loads it"
        )

    def factor(self, alpha: float, sigma: float) -> float:
        """What a state is divided by for the library's scale."""
        return _factor(alpha, sigma, self.flow)


def _first_state(solver: Solver) -> tuple[float, float, float]:
    """Level of the first state, and the factor of unit noise in it, in the solver's own scale."""
    program = program_of(solver)
    if _has_family(solver):
        assert isinstance(solver, SolverFile)
        family = families.rebuild(solver.family)
        with torch.no_grad():
            level = family.prepared_levels(solver.params)[0]
            return float(level.alpha), float(level.sigma), float(family.start_scale(solver.params))
    return float(program.level[0, 0]), float(program.level[0, 1]), float(program.A[0, 0])


def _has_family(solver: Solver) -> bool:
    return isinstance(solver, SolverFile) and solver.family.get("name") in families.ROSTER and "grid" in solver.family


def _rows(solver: Solver) -> list[int]:
    """Rows of the states after every step; of a table alone, of those that follow an evaluation."""
    program = program_of(solver)
    rows = range(program.nfe, len(program.level))
    return [r for r in rows if _has_family(solver) or bool(program.mask[r, program.inputs :].any())]


def _later_starts(solver: Solver, convention: str) -> list[SolverProgram]:
    """The solver from its second step on, from its third, and so on, where a noised image can begin there."""
    program, used, starts = program_of(solver).detach(), set[int](), []
    for i, row in enumerate(_rows(solver)):
        own = [k for k in program.mask[row, program.inputs :].nonzero().flatten().tolist() if k not in used]
        used.update(own)
        if (
            i
            and own
            and float(program.sigma[own[0]]) > 0
            and (convention == "flow" or float(program.alpha[own[0]]) > 0)
        ):
            starts.append(restarted(program, own[0]))
    return starts


def _sigmas(solver: Solver, convention: str) -> list[float]:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r} of sigmas is unknown; known: {', '.join(CONVENTIONS)}")
    program = program_of(solver)
    flow = convention == "flow"
    levels = [_first_state(solver)[:2], *program.level[_rows(solver)].tolist()]
    if any(_factor(alpha, sigma, flow) == 0 for alpha, sigma in levels):
        raise ValueError(PURE_NOISE)
    return [sigma / _factor(alpha, sigma, flow) for alpha, sigma in levels]


def _factor(alpha: float, sigma: float, flow: bool) -> float:
    return alpha + sigma if flow else alpha


def _agree(given: list[float], own: list[float]) -> bool:
    if len(given) != len(own):
        return False
    return all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-7) for a, b in zip(given, own, strict=True))
