"""The roster of solver families and the door to them, `build`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from solverdistill.families.base import Family
from solverdistill.families.classical.adams import IPNDM, IPNDMV
from solverdistill.families.classical.deis import DEIS
from solverdistill.families.classical.dpmpp import DPMpp
from solverdistill.families.classical.singlestep import DPMSolver2, Euler, Heun
from solverdistill.families.classical.unipc import UniPC
from solverdistill.families.learned.bespoke import BespokeRK1, BespokeRK2
from solverdistill.families.learned.bns import BNS
from solverdistill.families.learned.corrected import Corrected
from solverdistill.families.learned.dode import DODE_FAMILIES
from solverdistill.families.learned.dss import DSS
from solverdistill.families.learned.dyweight import DyWeight
from solverdistill.families.learned.epd import EPD, EPDiPNDM
from solverdistill.families.learned.gas import GAS
from solverdistill.families.learned.iia import IIA_FAMILIES
from solverdistill.families.learned.ld3 import LD3
from solverdistill.families.learned.s4s import S4S, S4SAlt
from solverdistill.noise.grids import Grid, grid_values
from solverdistill.noise.paths import Path, make_path
from solverdistill.support.type_checks import check_types

CLASSICAL = (Euler, Heun, DPMSolver2, DPMpp, UniPC, DEIS, IPNDM, IPNDMV)


PUBLISHED = (
    EPD,
    EPDiPNDM,
    BespokeRK1,
    BespokeRK2,
    *DODE_FAMILIES,
    DSS,
    BNS,
    S4S,
    S4SAlt,
    GAS,
    LD3,
    DyWeight,
    *IIA_FAMILIES,
)


ROSTER: dict[str, type[Family]] = {cls.name: cls for cls in (*CLASSICAL, *PUBLISHED, Corrected)}


ALIASES = {"ddim": "euler"}


def build(
    name: str,
    grid: Grid | Sequence[float] | Tensor,
    path: str | dict[str, Any] | Path = "edm",
    **hyperparameters: Any,
) -> Family:
    """Make a solver family.

    Args:
        name: A name of the roster, `sorted(ROSTER)`.
        grid: Decreasing noise levels in the path's own unit, or a rule for them.
        path: Noise path that the family is written on: a name, a description {"name": "flow", "shift": 3.0}, or a Path.
        hyperparameters: The family's own.
    Returns:
        A family with `init(seed)`, `program(params)`, `nfe` and `depth`.
    Raises:
        ValueError: unknown name, path or hyperparameter, or a grid that does not decrease.
    """
    name = ALIASES.get(name, name)
    if name not in ROSTER:
        raise ValueError(f"solver family {name!r} is unknown; known: {', '.join(sorted(ROSTER))}")
    cls = ROSTER[name]
    known = [f.name for f in fields(cls) if f.name not in ("grid", "path")]
    for option in hyperparameters:
        if option not in known:
            raise ValueError(f"family {name!r} has no hyperparameter {option!r}; it has: {', '.join(known)}")
    check_types(f"family {name!r}", cls, hyperparameters)
    path = make_path(path)
    return cls(grid=grid_values(grid, path), path=path, **hyperparameters)


def steps_for_nfe(name: str, nfe: int, grid: Grid, path: str | dict[str, Any] | Path = "edm", **options: Any) -> int:
    """Number of steps at which a family spends exactly `nfe` evaluations.

    Raises:
        ValueError: no number of steps does; the message names the nearest values that can be reached.
    """
    reached: list[int] = []
    for steps in range(1, max(nfe, 1) + 2):
        try:
            reached.append(build(name, grid.with_steps(steps), path, **options).nfe)
        except ValueError as error:
            if steps == max(nfe, 1) + 1:
                raise error from None
            reached.append(-1)
            continue
        if reached[-1] == nfe:
            return steps
        if reached[-1] > nfe:
            break
    nearest = sorted({n for n in reached if n >= 0}, key=lambda n: (abs(n - nfe), n))[:2]
    values = " and ".join(map(str, sorted(nearest)))
    raise ValueError(f"{name} cannot spend exactly nfe={nfe} evaluations; the nearest it can reach: {values}")
