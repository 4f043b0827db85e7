"""Derivatives of a student's samples in its params, in forward mode.

A student is a table, so the derivative of a sample in the params is its derivative in the numbers of the table times
that of these numbers in the params. The second factor is a small matrix, found on the host in reverse mode. The first
is only needed in the directions of its columns and comes in forward mode through the network: no activations are
stored, and memory is that of inference for as many images as directions are taken at once.

Attention runs with the math kernel meanwhile, because fused kernels have no forward derivative. A network that has none
at all is differenced.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from solverdistill.families.base import Family, Params
from solverdistill.fits.report import TANGENT_COST, Meter
from solverdistill.programs.playing import sample_with
from solverdistill.programs.program import Coefficients, SolverProgram
from solverdistill.references.batch import Batch
from solverdistill.support.memory import is_out_of_memory

MODES = ("vmap", "loop", "differences")
log = logging.getLogger(__name__)


@dataclass
class Differentiator:
    """Directional derivatives of samples, by the best means that the network allows.

    Args:
        denoiser: The teacher, possibly guided.
        directions: Directions taken at once.
        mode: "vmap": forward mode, many directions at once; "loop": one by one; "differences": central differences.
            Falls back to the next one where the network refuses.
        meter: Where the work is counted.
    """

    denoiser: Any
    directions: int = 8
    mode: str = "vmap"
    meter: Meter = field(default_factory=Meter)

    @torch.no_grad()
    def __call__(self, program: SolverProgram, tangents: Coefficients, batch: Batch) -> Tensor:
        """Derivatives of the sample. `tangents` have directions first. Shape: (directions, batch, ...)."""
        while True:
            try:
                with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                    # Torch's own forward derivative of group normalisation is still a script.
                    warnings.filterwarnings("ignore", ".*torch.jit.script.*is deprecated", FutureWarning)
                    return torch.cat([self._chunk(program, part, batch) for part in self._parts(tangents)])
            except (RuntimeError, NotImplementedError) as error:
                if self.mode == MODES[-1] or is_out_of_memory(error):
                    raise
                reason, refused = " ".join(str(error).split())[:160], self.mode
                self.mode = MODES[MODES.index(refused) + 1]
                log.warning("derivatives of the network: %s failed (%s); taking %s", refused, reason, self.mode)

    def _parts(self, tangents: Coefficients) -> Iterator[Coefficients]:
        size = self.directions if self.mode == "vmap" else 1
        for part in zip(*(value.split(size) for value in tangents), strict=True):
            yield Coefficients(*part)

    def _chunk(self, program: SolverProgram, part: Coefficients, batch: Batch) -> Tensor:
        images, count = batch.noise.shape[0] * program.nfe, part.alpha.shape[0]
        primals = tuple(program.coefficients)

        def play(*coefficients: Tensor) -> Tensor:
            return sample_with(program, Coefficients(*coefficients), self.denoiser, batch.noise, batch.cond)

        def differentiate(*direction: Tensor) -> Tensor:
            return torch.func.jvp(play, primals, direction)[1]

        cost = 2 * images if self.mode == "differences" else (1 + TANGENT_COST * count) * images
        with self.meter.measure("backward", cost):
            if self.mode == "differences":
                return self._difference(play, primals, [value[0] for value in part], batch.noise.dtype)[None]
            if self.mode == "vmap":
                return torch.vmap(differentiate)(*part)
            return differentiate(*(value[0] for value in part))[None]

    @staticmethod
    def _difference(play: Any, primals: tuple[Tensor, ...], direction: list[Tensor], dtype: torch.dtype) -> Tensor:
        size = max(float(value.abs().max()) for value in direction) or 1.0
        step = torch.finfo(torch.promote_types(dtype, torch.float32)).eps ** (1 / 3) / size
        ends = []
        for sign in (1.0, -1.0):
            alpha, sigma, A, B = (value + sign * step * v for value, v in zip(primals, direction, strict=True))
            ends.append(play(alpha.clamp(min=0), sigma.clamp(min=0), A, B))
        return (ends[0] - ends[1]) / (2 * step)


def coefficient_tangents(family: Family, params: Params) -> tuple[SolverProgram, Coefficients]:
    """The student's table and the derivatives of its numbers in every param, directions first, params in a row.

    Rows that the sample does not depend on count as constant.

    Raises:
        ValueError: the table does not depend on any param.
    """
    leaves = [value.detach().to("cpu", torch.float64, copy=True).requires_grad_() for value in params.values()]
    with torch.enable_grad():
        program = family.program(dict(zip(params, leaves, strict=True)))
        flat = torch.cat([value.flatten() for value in program.coefficients])
        numbers = flat.unbind()
    if not flat.requires_grad:
        raise ValueError(f"{family.name} has no params that change its table; it cannot be fitted")
    used = program.mask.clone()
    used[program.nfe : -1] = False
    told, table = torch.ones(2 * program.nfe, dtype=torch.bool), used.split([program.inputs, program.nfe], dim=1)
    acts = torch.cat([told, *(part.flatten() for part in table)])
    result = torch.zeros(sum(leaf.numel() for leaf in leaves), len(flat), dtype=torch.float64)
    for k in acts.nonzero().flatten().tolist():
        gradients = torch.autograd.grad(numbers[k], leaves, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(v) if g is None else g for g, v in zip(gradients, leaves, strict=True)]
        result[:, k] = torch.cat([part.flatten() for part in parts])
    program = program.detach()
    shapes = [value.shape for value in program.coefficients]
    pieces = result.split([shape.numel() for shape in shapes], dim=1)
    return program, Coefficients(*(part.unflatten(1, shape) for part, shape in zip(pieces, shapes, strict=True)))
