"""Several programs as one, whose k-th stages run as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from solverdistill.programs.program import SolverProgram


def side_by_side(programs: Sequence[SolverProgram]) -> SolverProgram:
    """One program that plays several, each on inputs of its own: the k-th stages of all run as one batch.

    Inputs, evaluations and readouts are those of the programs in their order, so the readouts of the result are
    ``[*readouts of the first, *readouts of the second, ...]``.
    """
    inputs, nfe = (sum(getattr(program, name) for program in programs) for name in ("inputs", "nfe"))
    evaluations, readouts, stages = [], [], [[] for _ in range(max(program.depth for program in programs))]
    first_input, first = 0, 0
    for program in programs:
        table = torch.zeros(program.A.shape[0], inputs + nfe, dtype=program.A.dtype)
        columns = [*range(first_input, first_input + program.inputs)]
        columns += range(inputs + first, inputs + first + program.nfe)
        values = table.index_copy(1, torch.tensor(columns), torch.cat([program.A, program.B], dim=1))
        mask = table.bool().index_copy(1, torch.tensor(columns), program.mask)
        evaluations.append((values[: program.nfe], mask[: program.nfe], program.level[: program.nfe]))
        readouts.append((values[program.nfe :], mask[program.nfe :], program.level[program.nfe :]))
        for merged, stage in zip(stages, program.stages, strict=False):
            merged += [first + k for k in stage]
        first_input, first = first_input + program.inputs, first + program.nfe
    values, mask, level = (torch.cat(part) for part in zip(*evaluations, *readouts, strict=True))
    return SolverProgram(
        alpha=torch.cat([program.alpha for program in programs]),
        sigma=torch.cat([program.sigma for program in programs]),
        A=values[:, :inputs],
        B=values[:, inputs:],
        mask=mask,
        stages=tuple(map(tuple, stages)),
        level=level,
    )
