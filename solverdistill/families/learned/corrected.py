"""Corrected solvers: a base solver at learned times, with a learned correction to every number of its table.

The base is traced at learned noise levels; each entry that can be non-zero in its evaluation rows and in the row of the
sample, and the level that the network is told, is then moved as `corrections` has it, so that zero corrections are the
base solver. Their sizes are those of the levels of the grid that the family is given.

This contains every solver with as many evaluations in the same stages whose rows have the base's structure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from solverdistill.families.base import Family, Params, Timeline
from solverdistill.families.learned.corrections import Corrections, TableFamily
from solverdistill.families.learned.epd import EPD, EPDiPNDM
from solverdistill.families.learned.ld3 import BASES as CLASSICAL_BASES
from solverdistill.families.learned.learned_times import learned_grid, raw_steps, to_regular
from solverdistill.noise.levels import Level, float64
from solverdistill.programs.program import SolverProgram

BASES: dict[str, type[Family]] = {**CLASSICAL_BASES, EPD.name: EPD, EPDiPNDM.name: EPDiPNDM}

SEQUENTIAL: tuple[dict[str, Any], ...] = (  # bases of one evaluation per step
    *({"base": "ipndm", "order": order} for order in (2, 3, 4)),
    {"base": "ipndm_v", "order": 3},
    {"base": "deis", "order": 3},
    *({"base": "dpmpp", "order": order} for order in (2, 3)),
    *({"base": "unipc", "order": order} for order in (2, 3)),
)


class Values(NamedTuple):
    """What a table is made of: the base on the learned grid with its own params, and the corrections."""

    base: Family
    base_params: Params
    corrections: Params


@dataclass(frozen=True, kw_only=True)
class Corrected(TableFamily):
    """A base solver re-traced at learned times plus an additive correction to every structural entry of its table.

    Params: those of the base under their own names; `raw_dt` (steps,), added to the raw step sizes of the grid before
    the softmax of `learned_times`; `correction_inputs` (nfe + 1, 1) and `correction_denoised` (nfe + 1, nfe), of the
    evaluation rows and, last, of the row of the sample; `told` (nfe,) with `learn_told`. All but the base's start at 0.
    Entries of `correction_denoised` outside the base's structure never act, nor does `told` at pure noise and at clean
    data.

    States between the steps are read out uncorrected: nothing of the sample depends on those rows, so corrections to
    them would be params that no end point can train. They are still made of what the corrected evaluations gave.

    The table is corrected as a whole, so there are no steps: objectives that start a step from given states cannot use
    this family.

    Args:
        base: Name of a classical family, "epd" or "epd_ipndm".
        order: Order (`dpmpp`, `unipc`) or largest order (`ipndm`, `ipndm_v`, `deis`, `epd_ipndm`) of the base; None is
            its own default, as for the other options of the base.
        variant: "bh1" or "bh2" of `unipc`.
        predict_x0: Whether `dpmpp` and `unipc` extrapolate the denoised image.
        points: Parallel evaluations per step of `epd` and `epd_ipndm`.
        afs: Analytical first step of the base.
        learn_told: Learn the level told to the network at each evaluation.
    """

    base: str = "unipc"
    order: int | None = None
    variant: str | None = None
    predict_x0: bool | None = None
    points: int | None = None
    afs: bool | None = None
    learn_told: bool = True
    name: ClassVar[str] = "corrected"

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise ValueError(f"base of {self.name} is {self.base!r}; known: {', '.join(BASES)}")
        _ = self.solver  # refuses options that the base does not have

    def starts(self) -> tuple[dict[str, Any], ...]:
        """Every sequential base, where the base is one; parallel bases and those of two stages keep to themselves."""
        if self.base not in {start["base"] for start in SEQUENTIAL}:
            return ({},)
        return ({}, *({**start, "variant": None, "predict_x0": None} for start in SEQUENTIAL))

    @cached_property
    def solver(self) -> Family:
        """The base solver on the fixed grid."""
        cls = BASES[self.base]
        known = {f.name for f in fields(cls)}
        options: dict[str, Any] = {"denoise_to_zero": self.denoise_to_zero}
        if issubclass(cls, EPD):
            options["init_from"] = "quadrature"  # a base that is a solver
        for option in ("order", "variant", "predict_x0", "points", "afs"):
            value = getattr(self, option)
            if value is None:
                continue
            name = "max_order" if option == "order" and "max_order" in known else option
            if name not in known:
                raise ValueError(f"base {self.base!r} of {self.name} has no {option}; leave it null")
            options[name] = value
        return cls(grid=self.grid, path=self.path, **options)

    @cached_property
    def _template(self) -> SolverProgram:
        """The base's table on the fixed grid: structure, and the levels that scale the corrections."""
        with torch.inference_mode(False):
            return self.solver.program(self.solver.init(0)).detach()

    @cached_property
    def _raw_grid(self) -> Tensor:
        with torch.inference_mode(False):
            return raw_steps(to_regular(self.path, float64(self.grid)))

    @cached_property
    def corrections(self) -> Corrections:
        """What the corrections act on."""
        return Corrections.of(self._template)

    def init(self, seed: int = 0) -> Params:
        raw_dt = torch.zeros(self.steps, dtype=torch.float64)
        return {**self.solver.init(seed), "raw_dt": raw_dt, **self.corrections.zeros(self.learn_told)}

    def prepare(self, params: Params) -> Values:
        own = self.solver.init(0)
        base = replace(self.solver)
        s = learned_grid(self.path, self.grid, self._raw_grid + params["raw_dt"])
        # Every base reads its grid from here, also those whose values are no Timeline.
        vars(base)["timeline"] = Timeline(self.path, s)
        corrections = {name: value for name, value in params.items() if name not in own}
        return Values(base, {name: params[name] for name in own}, corrections)

    def levels(self, values: Values) -> list[Level]:
        return values.base.levels(values.base.prepare(values.base_params))

    def initial_scale(self, values: Values) -> Tensor:
        return self.solver.initial_scale(self.solver.prepare(self.solver.init(0)))

    def program(self, params: Params | None = None) -> SolverProgram:
        """Trace the base at the learned times and correct its table, differentiable in the params."""
        values = self._prepare(params)
        return self.corrections.apply(self._base_table(values), values.corrections)

    def _base_table(self, values: Values) -> SolverProgram:
        """The base's table; the last one is remembered, for fits that move corrections alone."""
        given = [values.base.timeline.s, *values.base_params.values()]
        if any(value.requires_grad for value in given):
            return values.base.program(values.base_params)
        key = tuple(tuple(value.flatten().tolist()) for value in given)
        if key not in self._traced:
            self._traced.clear()
            with torch.inference_mode(False):
                self._traced[key] = values.base.program(values.base_params)
        return self._traced[key]

    @cached_property
    def _traced(self) -> dict[tuple[tuple[float, ...], ...], SolverProgram]:
        return {}

    @cached_property
    def _table(self) -> SolverProgram:
        return self._template  # corrections leave the structure as it is
