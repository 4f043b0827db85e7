"""A solver for a network with integer times, written so that it only tells the levels of the network's own table.

The teacher rounds the time that its network is told and converts the output y at the exact level:
D = P x + Q y, with (P, Q) of the level. A consumer that is told the rounded level converts with (P_i, Q_i) of that and
gets D_i = P_i x + Q_i y. Hence

    D = q D_i + p x,    q = Q / Q_i,    p = P - q P_i

is affine in D_i and in the row x that the solver forms anyway: replacing every D_k by q_k D_k + p_k x_k gives another
table of the same solver. Played anywhere, it forms the same network inputs and the same sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from solverdistill.noise.paths import make_path
from solverdistill.programs.program import SolverProgram
from solverdistill.teachers.own.native_levels import NativeLevels


def snap_program(program: SolverProgram, description: Mapping[str, Any]) -> SolverProgram:
    """Rewrite a solver so that every told level is an integer time of its teacher's; else return it as it is.

    The rows of a program see x_k at the told hypot, which snapping keeps, so the network's inputs do not change. The
    result depends on the teacher's prediction type and is meant for consumers, not for training.

    Args:
        program: The solver.
        description: Of the teacher that it was fitted to, as a solver file tells it; the network is not needed.
    """
    if not description.get("discrete_times"):
        return program
    table, prediction = NativeLevels(make_path(description["path"])), str(description["prediction"])
    size = torch.hypot(program.alpha, program.sigma)
    alpha, sigma = (value * size for value in table.at_index(table.nearest(program.alpha, program.sigma)))
    P, Q = table.output(prediction, program.alpha, program.sigma)
    P_told, Q_told = table.output(prediction, alpha, sigma)
    q = Q / Q_told
    p = P - q * P_told
    A, B, mask = program.A.clone(), program.B.clone(), program.mask.clone()
    for k in reversed(range(program.nfe)):
        # Later rows only: row k itself uses outputs before k, whose turn is still to come.
        weight = B[k + 1 :, k].clone()
        uses = mask[k + 1 :, program.inputs + k]
        A[k + 1 :] += (weight * p[k])[:, None] * A[k]
        B[k + 1 :] += (weight * p[k])[:, None] * B[k]
        B[k + 1 :, k] = weight * q[k]
        mask[k + 1 :] |= uses[:, None] & mask[k]
    return replace(program, alpha=alpha, sigma=sigma, A=A, B=B, mask=mask)
