"""Distil a frozen diffusion or flow model into a tiny ODE solver; play the exported file with torch alone.

>>> program = solverdistill.load_solver("solver.json")
>>> images = solverdistill.sample(program, denoiser, torch.randn(16, 3, 32, 32))
"""

from solverdistill import families
from solverdistill.denoisers.base import Denoiser, Teacher
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import Path, make_path
from solverdistill.programs.playing import Evaluation, sample
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import SolverFile, SolverFileError, load_solver, read_solver, save_solver
from solverdistill.teachers.mixture import mixture
from solverdistill.version import __version__

__all__ = [
    "Denoiser",
    "Evaluation",
    "Grid",
    "Path",
    "SolverFile",
    "SolverFileError",
    "SolverProgram",
    "Teacher",
    "__version__",
    "families",
    "load_solver",
    "make_path",
    "mixture",
    "read_solver",
    "sample",
    "save_solver",
]
