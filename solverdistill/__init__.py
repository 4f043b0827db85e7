"""Distil a frozen diffusion or flow model into a tiny ODE solver; play the exported file with torch alone.

>>> program = solverdistill.load_solver("solver.json")
>>> images = solverdistill.sample(program, denoiser, torch.randn(16, 3, 32, 32))
"""

from solverdistill import families
from solverdistill.coefficients import SolverFile, SolverFileError, load_solver, read_solver, save_solver
from solverdistill.denoiser import Denoiser, Teacher
from solverdistill.grids import Grid
from solverdistill.noise import Path, make_path
from solverdistill.program import Evaluation, SolverProgram, sample
from solverdistill.teachers.mixture import mixture

__version__ = "0.1.0"

__all__ = [
    "Denoiser",
    "Evaluation",
    "Grid",
    "Path",
    "SolverFile",
    "SolverFileError",
    "SolverProgram",
    "Teacher",
    "families",
    "load_solver",
    "make_path",
    "mixture",
    "read_solver",
    "sample",
    "save_solver",
]
