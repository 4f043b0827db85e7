"""Classical solvers that take their noise for a state at a lower noise level: few evaluations go further from there.

A learned solver may begin lower (`fits.race`), which costs nothing and helps the others as well, so comparisons include
the best of them. Which solver, grid and level are best is found on a few samples.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.evaluation.candidates import Candidate, classical_candidates
from solverdistill.evaluation.compare import compare
from solverdistill.noise.paths import Path
from solverdistill.programs.playing import Denoise

SHIFTS = (1.0, 1.5, 2.0, 2.5, 3.0)  # of log(alpha / sigma) at the first noise level
SAMPLES = 16
KEPT = 3  # of every cost


def best_from_lower(
    path: Path,
    noise_range: tuple[float, float],
    denoiser: Denoise,
    noise: Tensor,
    cond: Any,
    reference: Tensor,
    nfe: int | None = None,
    depth: int | None = None,
    batch_size: int = SAMPLES,
    short: bool = False,
) -> list[Candidate]:
    """The classical solvers of a cost that end nearest to the reference from lower noise levels, on the first samples.

    Args:
        path: The teacher's path.
        noise_range: Largest and smallest noise level, in the path's own unit.
        denoiser: The teacher, possibly guided.
        noise: Unit-normal noise. Shape: (images, ...).
        cond: Pytree of conditions, every tensor with a dimension having `images` as its first; None for none.
        reference: End points of the reference solver from the same noise. Shape: as noise.
        nfe: Evaluations to match.
        depth: Sequential calls to match.
        batch_size: Images per network call and stage.
        short: Seek among the short list of classical solvers alone.
    Returns:
        At most three for each of the two numbers, the best first.
    """
    field: list[Candidate] = []
    for shift in SHIFTS:
        try:
            field += classical_candidates(path, noise_range, nfe, depth, shift=shift, short=short).candidates
        except ValueError:  # nothing is left of the noise range
            break
    images = len(noise)
    first = pytree.tree_map(lambda leaf: leaf[:SAMPLES] if _has_rows(leaf, images) else leaf, cond)
    rows = compare(field, denoiser, noise[:SAMPLES], first, reference[:SAMPLES], min(SAMPLES, batch_size))
    ranked = sorted(zip(rows, field, strict=False), key=lambda pair: pair[0].order)
    costs = dict.fromkeys(candidate.nfe for candidate in field)
    return [one for cost in costs for one in [c for _, c in ranked if c.nfe == cost][:KEPT]]


def _has_rows(leaf: Any, images: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == images
