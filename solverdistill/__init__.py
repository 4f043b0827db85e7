"""Distil a frozen diffusion or flow model into a tiny ODE solver; play the exported file with torch alone.

>>> program = solverdistill.load_solver("solver.json")
>>> images = solverdistill.sample(program, denoiser, torch.randn(16, 3, 32, 32))

Every name below is imported when it is first asked for. `import solverdistill` alone loads not even torch, so commands
answer at once and set their environment before torch reads it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from solverdistill.support.old_paths import find_old_paths
from solverdistill.version import __version__ as __version__

# Where the public names live: one line here, and the same import below for type checkers.
HOMES = {
    "Denoiser": "denoisers.base",
    "Distilled": "training.distilled",
    "Evaluation": "programs.playing",
    "Grid": "noise.grids",
    "Path": "noise.paths",
    "SolverFile": "programs.solver_file",
    "SolverFileError": "programs.solver_file",
    "SolverProgram": "programs.program",
    "Teacher": "denoisers.base",
    "distill": "training.distilling",
    "families": "families",
    "load_solver": "programs.solver_file",
    "load_teacher": "training.distilling",
    "make_path": "noise.paths",
    "mixture": "teachers.mixture",
    "read_solver": "programs.solver_file",
    "sample": "programs.playing",
    "save_solver": "programs.solver_file",
    "wrap": "teachers.own.wrap",
}
if TYPE_CHECKING:
    from solverdistill import families as families
    from solverdistill.denoisers.base import Denoiser as Denoiser
    from solverdistill.denoisers.base import Teacher as Teacher
    from solverdistill.noise.grids import Grid as Grid
    from solverdistill.noise.paths import Path as Path
    from solverdistill.noise.paths import make_path as make_path
    from solverdistill.programs.playing import Evaluation as Evaluation
    from solverdistill.programs.playing import sample as sample
    from solverdistill.programs.program import SolverProgram as SolverProgram
    from solverdistill.programs.solver_file import SolverFile as SolverFile
    from solverdistill.programs.solver_file import SolverFileError as SolverFileError
    from solverdistill.programs.solver_file import load_solver as load_solver
    from solverdistill.programs.solver_file import read_solver as read_solver
    from solverdistill.programs.solver_file import save_solver as save_solver
    from solverdistill.teachers.mixture import mixture as mixture
    from solverdistill.teachers.own.wrap import wrap as wrap
    from solverdistill.training.distilled import Distilled as Distilled
    from solverdistill.training.distilling import distill as distill
    from solverdistill.training.distilling import load_teacher as load_teacher

__all__ = ["__version__", *HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

find_old_paths()


def __getattr__(name: str) -> Any:
    """Import a public name from its module, the first time."""
    home = HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{home}")
    value = module if home == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
