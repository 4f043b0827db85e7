"""Search of a student's grid without gradients: the best points out of a fine reference, for any base solver.

    found = search_grid("gits", teacher, denoiser, steps=6)
    student = families.build("ipndm", found.levels, teacher.path)

The result is decreasing noise levels in the unit of the teacher's path, and depends on the settings and the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import Teacher, call
from solverdistill.denoisers.wrappers import Counted
from solverdistill.fits.grid_search.gits import METRICS, cheapest_path, insert_analytical_step, jump_costs
from solverdistill.fits.grid_search.oss import median_steps, optimal_steps
from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.references.solving import Reference
from solverdistill.references.trajectory import Trajectory
from solverdistill.support.type_checks import check_fields, check_range

COMBINATIONS = ("shared", "median")

__all__ = [
    "COMBINATIONS",
    "GITS",
    "METHODS",
    "METRICS",
    "OSS",
    "SearchedGrid",
    "cheapest_path",
    "insert_analytical_step",
    "jump_costs",
    "make_method",
    "median_steps",
    "optimal_steps",
    "search_grid",
]


@dataclass(frozen=True)
class _Problem:
    """What a method searches on: seeded samples, their fine solutions and the levels of these."""

    reference: Trajectory
    levels: tuple[float, ...]
    noise: Tensor
    denoiser: Any
    cond: Any


@dataclass(frozen=True)
class GITS:
    """Dynamic programming over Euler jumps; see `solverdistill.fits.grid_search.gits`.

    Args:
        metric: Cost of a jump: "dev", "l1" or "l2".
        gamma: Weight of the m-th jump is gamma^m; the paper has 1.15, and 1.2 for Stable Diffusion.
        afs: Add a point for the analytical first step; the student then has one step more, and needs `afs` as well.
        solver: Family that places that point.
    """

    metric: str = "dev"
    gamma: float = 1.15
    afs: bool = False
    solver: str = "ipndm"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.metric not in METRICS:
            raise ValueError(f"cost metric {self.metric!r} of gits is unknown; known: {', '.join(METRICS)}")

    def choose(self, problem: _Problem, steps: int) -> list[int]:
        """Indices of the chosen points."""
        indices = cheapest_path(jump_costs(problem.reference, self.metric), steps, self.gamma)
        if not self.afs:
            return indices
        return insert_analytical_step(
            problem.reference, problem.levels, indices, problem.noise, problem.denoiser, problem.cond, self.solver
        )


@dataclass(frozen=True)
class OSS:
    """Recursion over the states of an Euler student; see `solverdistill.fits.grid_search.oss`.

    Args:
        combine: One grid for all samples: "shared" chooses every step by the error of all samples together, "median"
            (as published) takes the median of the samples' own grids.
    """

    combine: str = "shared"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine={self.combine!r} of oss is unknown; known: {', '.join(COMBINATIONS)}")

    def choose(self, problem: _Problem, steps: int) -> list[int]:
        """Indices of the chosen points."""
        shared = self.combine == "shared"
        return median_steps(optimal_steps(problem.reference, problem.denoiser, steps, problem.cond, shared))


METHODS: dict[str, type[GITS] | type[OSS]] = {"gits": GITS, "oss": OSS}


@dataclass(frozen=True)
class SearchedGrid:
    """What a search found, and what it cost.

    Args:
        levels: Decreasing noise levels in the path's own unit, as `families.build` takes them.
        indices: Their positions on the fine grid of the reference.
        evaluations: Evaluations of the teacher by single samples, the reference included.
    """

    levels: tuple[float, ...]
    indices: tuple[int, ...]
    evaluations: int


def make_method(name: str, options: Mapping[str, Any] | None = None) -> GITS | OSS:
    """A search method with its settings.

    Raises:
        ValueError: the name or a setting is unknown.
    """
    if name not in METHODS:
        raise ValueError(f"search method {name!r} is unknown; known: {', '.join(METHODS)}")
    method, options = METHODS[name], options or {}
    known = [f.name for f in fields(method)]
    for option in options:
        if option not in known:
            raise ValueError(f"search method {name!r} has no setting {option!r}; it has: {', '.join(known)}")
    return method(**options)


@torch.no_grad()
def search_grid(
    method: str | GITS | OSS,
    teacher: Teacher,
    denoiser: Any,
    steps: int,
    *,
    reference: Reference | None = None,
    samples: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> SearchedGrid:
    """Search the grid of a student on seeded training noise.

    Args:
        method: "gits", "oss", or one of them with its settings.
        teacher: Gives path, noise range and conditions.
        denoiser: What is sampled from: the teacher, possibly guided; on `device`.
        steps: Steps of the grid.
        reference: The fine solve whose points are chosen from; None takes iPNDM in 60 steps.
        samples: Trajectories.
        batch_size: Samples per network call, at most.
        seed: Seed of the noise.
        device: Where the network runs.
    Raises:
        ValueError, TypeError: the reference is too coarse, or a setting cannot be used.
    """
    for name, value in (("steps", steps), ("samples", samples), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TypeError(f"{name} of a search must be an integer of at least 1, not {value!r}")
    reference = Reference(steps=60) if reference is None else reference
    check_range("steps of a search among the points of a reference", steps, most=reference.steps)
    method = make_method(method) if isinstance(method, str) else method
    levels = reference.levels(teacher.path, teacher.noise_range)
    noise, cond = seeded_noise(range(SPLITS["train"], SPLITS["train"] + samples), teacher, seed)
    noise, cond = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), (noise, cond))
    counted = Counted(denoiser)
    chunked = _Chunked(counted, batch_size)
    solved = reference.solve(teacher, chunked, noise, cond)
    indices = method.choose(_Problem(solved, levels, noise, chunked, cond), steps)
    return SearchedGrid(tuple(levels[i] for i in indices), tuple(indices), counted.images)


@dataclass(frozen=True)
class _Chunked:
    """Calls a denoiser on at most `size` samples at a time."""

    denoiser: Any
    size: int

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        outputs = []
        for start in range(0, len(x), self.size):
            part = slice(start, start + self.size)
            own = pytree.tree_map_only(Tensor, lambda leaf, part=part: leaf[part], cond)
            outputs.append(call(self.denoiser, x[part], alpha[part], sigma[part], own))
        return torch.cat(outputs)
