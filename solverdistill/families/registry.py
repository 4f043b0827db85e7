"""The roster of solver families and the door to them, `build`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from solverdistill.families.base import Family
from solverdistill.families.classical.adams import IPNDM, IPNDMV
from solverdistill.families.classical.deis import DEIS
from solverdistill.families.classical.dpm_single import DPM2S, DPM3S, DPMFast, DPMpp2S, DPMpp3S
from solverdistill.families.classical.dpmpp import DPMpp
from solverdistill.families.classical.kdiffusion import LMS, GradientEstimation, HeunPP2
from solverdistill.families.classical.res import RES2S, RES3S, RESMultistep
from solverdistill.families.classical.sde_limits import ERSDE, SASolver
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
from solverdistill.families.learned.parallel import Parallel
from solverdistill.families.learned.s4s import S4S, S4SAlt
from solverdistill.families.learned.table import Table
from solverdistill.families.step_search import find_steps
from solverdistill.noise.grids import Grid, grid_values
from solverdistill.noise.paths import Path, make_path
from solverdistill.support.naming import find_by_name
from solverdistill.support.type_checks import check_types

CLASSICAL = (
    Euler,
    Heun,
    DPMSolver2,
    DPMpp,
    UniPC,
    DEIS,
    IPNDM,
    IPNDMV,
    DPMpp2S,
    DPMpp3S,
    DPM2S,
    DPM3S,
    DPMFast,
    HeunPP2,
    LMS,
    GradientEstimation,
    RESMultistep,
    RES2S,
    RES3S,
    ERSDE,
    SASolver,
)


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


ROSTER: dict[str, type[Family]] = {cls.name: cls for cls in (*CLASSICAL, *PUBLISHED, Corrected, Table, Parallel)}


# What others call them. The last ones are what samplers of the SDE are without noise.
ALIASES = {
    "ddim": "euler",
    "dpm_2": "dpm2",
    "dpmpp_2m": "dpmpp",
    "uni_pc": "unipc",
    "dpmpp_2m_sde": "dpmpp",
    "dpmpp_sde": "dpmpp_2s",
    "dpmpp_2s_ancestral": "dpmpp_2s",
    "seeds_2": "dpmpp_2s",
    "seeds_3": "dpmpp_3s",
}


def build(
    name: str,
    grid: Grid | Sequence[float] | Tensor,
    path: str | dict[str, Any] | Path = "edm",
    **hyperparameters: Any,
) -> Family:
    """Make a solver family.

    Args:
        name: A name of the roster, `sorted(ROSTER)`, or the dotted name of a Family of your own, or of a function that
            takes grid, path and hyperparameters and returns one. A dotted name is imported, which runs its module:
            give what a file says to `rebuild`.
        grid: Decreasing noise levels in the path's own unit, or a rule for them.
        path: Noise path that the family is written on: a name, a description {"name": "flow", "shift": 3.0}, or a Path.
        hyperparameters: The family's own.
    Returns:
        A family with `init(seed)`, `program(params)`, `nfe` and `depth`.
    Raises:
        ValueError: unknown name, path or hyperparameter, a grid that does not decrease, or a dotted name that cannot be
            imported or stands for no family.
    """
    return _make(name, find_family(name), grid, path, hyperparameters)


def rebuild(stored: Mapping[str, Any], configured: Family | None = None) -> Family:
    """Make the family that a file holds, importing nothing.

    Args:
        stored: As `Family.hyperparameters()` gave them and a file kept them.
        configured: The family of the user's own configuration, the only one outside the roster that is made.
    Raises:
        ValueError: the file names another one outside the roster, or holds what no family can be made of.
    """
    try:
        return _rebuild(stored, configured)
    except ValueError:
        raise
    except Exception as error:  # what a file holds has any type
        raise ValueError(f"the file describes no solver family: {error}") from None


def _rebuild(stored: Mapping[str, Any], configured: Family | None) -> Family:
    given = dict(stored)
    name, grid, path = (given.pop(key, None) for key in ("name", "grid", "path"))
    if configured is not None and name == configured.hyperparameters()["name"]:
        return _make(name, type(configured), grid or (), path or "edm", given)
    if name not in (*ROSTER, *ALIASES):
        raise ValueError(
            f"the file holds a solver of the family {name!r}, which is none of this package, and a file imports "
            "nothing; its table plays all the same, and training goes on with solver.name set to that family"
        )
    return build(**stored)


def find_family(name: str) -> Callable[..., Any]:
    """The class of a name of the roster, or what a dotted name stands for.

    Raises:
        ValueError: there is none, or it is another class.
    """
    name = ALIASES.get(name, name)
    if name in ROSTER:
        return ROSTER[name]
    if "." not in name:
        known = ", ".join(sorted(ROSTER))
        raise ValueError(f"solver family {name!r} is unknown; known: {known}; your own goes by its dotted name")
    found = find_by_name("solver family", name)
    if isinstance(found, type) and not issubclass(found, Family):
        raise ValueError(f"solver family {name!r} is a class that does not derive from {Family.__module__}.Family")
    return found


def _make(
    name: str,
    make: Callable[..., Any],
    grid: Grid | Sequence[float] | Tensor,
    path: str | dict[str, Any] | Path,
    options: Mapping[str, Any],
) -> Family:
    if isinstance(make, type):
        known = [f.name for f in fields(make) if f.name not in ("grid", "path")]
        for option in options:
            if option not in known:
                raise ValueError(f"family {name!r} has no hyperparameter {option!r}; it has: {', '.join(known)}")
        check_types(f"family {name!r}", make, options)
    path = make_path(path)
    arguments = {"grid": grid_values(grid, path), "path": path, **options}
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"solver family {name!r} does not take {', '.join(arguments)}: {error}") from None
    family = make(**arguments)
    if not isinstance(family, Family):
        raise ValueError(f"solver family {name!r} gives {family!r}, which is no {Family.__module__}.Family")
    return family


def build_for_nfe(name: str, nfe: int, grid: Grid, path: str | dict[str, Any] | Path = "edm", **options: Any) -> Family:
    """Make a family with the number of steps at which it spends exactly `nfe` evaluations.

    Raises:
        ValueError: no number of steps does; the message names the nearest values that can be reached.
    """
    return _build_for("nfe", nfe, name, grid, path, options)


def build_for_depth(
    name: str, depth: int, grid: Grid, path: str | dict[str, Any] | Path = "edm", **options: Any
) -> Family:
    """Make a family with the number of steps at which it takes exactly `depth` sequential network calls.

    Raises:
        ValueError: as `build_for_nfe`.
    """
    return _build_for("depth", depth, name, grid, path, options)


def _build_for(
    cost: str, wanted: int, name: str, grid: Grid, path: str | dict[str, Any] | Path, options: Mapping[str, Any]
) -> Family:
    make, refused, families = find_family(name), dict[int, ValueError](), dict[int, Family]()

    def cost_of(steps: int) -> int | None:
        try:
            families[steps] = _make(name, make, grid.with_steps(steps), path, options)
            return getattr(families[steps], cost)
        except ValueError as error:
            refused[steps] = error
            return None

    steps, reached = find_steps(cost_of, wanted, max(wanted, 1) + 1)
    if steps is not None:
        return families[steps]
    if refused and all(n < wanted for n in reached):  # more steps cannot be built
        raise refused[max(refused)] from None
    nearest = sorted(reached, key=lambda n: (abs(n - wanted), n))[:2]
    values = " and ".join(map(str, sorted(nearest)))
    spend = f"spend exactly nfe={wanted} evaluations" if cost == "nfe" else f"have a depth of exactly {wanted}"
    raise ValueError(f"{name} cannot {spend}; the nearest it can reach: {values}")


def steps_for_nfe(name: str, nfe: int, grid: Grid, path: str | dict[str, Any] | Path = "edm", **options: Any) -> int:
    """Number of steps at which a family spends exactly `nfe` evaluations.

    Raises:
        ValueError: as `build_for_nfe`.
    """
    return build_for_nfe(name, nfe, grid, path, **options).steps
