"""Beginning in the middle of a solver, from a noised image: the rest of a table is a table again.

A table expects its noise and every denoised image before evaluation k. Neither is known of a state x that comes from
elsewhere (img2img, a second sampler), so the state is taken to lie on the straight line of its own denoised image d and
noise, as at first order::

    x = alpha_k d + sigma_k n    so    n = (x - alpha_k d) / sigma_k,    denoised_j = d for j < k

and the rows that remain are played as they are. Both are linear in x and d, so they go into the rows.
"""

from __future__ import annotations

import torch

from solverdistill.programs.program import SolverProgram


def restarted(program: SolverProgram, k: int) -> SolverProgram:
    """The solver from evaluation k on; its input is the state at the level that is told there.

    Args:
        program: A solver of one input.
        k: Evaluation to begin at.
    Returns:
        A solver of nfe - k evaluations and of the readouts that use one of them.
    Raises:
        ValueError: there is no such evaluation, it has no noise, or the program has several inputs.
    """
    nfe, mask = program.nfe, program.mask
    if program.inputs != 1:
        raise ValueError(f"a program of {program.inputs} inputs cannot begin in the middle; only those of one can")
    if not 0 <= k < nfe or float(program.sigma[k]) == 0:
        raise ValueError(
            f"a solver of {nfe} evaluations cannot begin at {k}: there is no such evaluation, or no noise in it"
        )
    alpha, sigma = program.alpha[k], program.sigma[k]
    rows = [*range(k, nfe), *(r for r in range(nfe, len(mask)) if bool(mask[r, 1 + k :].any()))]
    A, B = program.A[rows] / sigma, program.B[rows][:, k:].clone()
    B[:, 0] = program.B[rows][:, : k + 1].sum(1) - A[:, 0] * alpha
    A[0], B[0] = 1.0, 0.0
    before = mask[rows][:, : 2 + k].any(1, keepdim=True)
    support = torch.cat([before, before, mask[rows][:, 2 + k :]], dim=1)
    support[0], support[0, 0] = False, True
    level = program.level[rows].clone()
    level[0] = torch.stack([alpha, sigma])
    later = [tuple(j - k for j in stage if j > k) for stage in program.stages]
    stages = ((0,), *(stage for stage in later if stage))
    return SolverProgram(program.alpha[k:], program.sigma[k:], A, B, support, stages, level)
