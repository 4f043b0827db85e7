"""Public names at the places where they were before modules moved; they resolve with a warning.

Covers every old `_target_` of a shipped configuration and every import that README, docs and integrations showed. A row
is a module, and stands for all names in it, or one name of a module that was divided.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "solverdistill.cli": "solverdistill.commands.main",
    "solverdistill.coefficients": "solverdistill.programs.solver_file",
    "solverdistill.denoiser": "solverdistill.denoisers.base",
    "solverdistill.families.learned_times": "solverdistill.families.learned.learned_times",
    "solverdistill.local.LocalTruncation": "solverdistill.objectives.local_truncation.LocalTruncation",
    "solverdistill.local.RMSEBound": "solverdistill.objectives.rmse_bound.RMSEBound",
    "solverdistill.objectives.PublishedEPD": "solverdistill.objectives.published_epd.PublishedEPD",
    "solverdistill.objectives.Trajectory": "solverdistill.objectives.rollout.Trajectory",
    "solverdistill.search_loss": "solverdistill.objectives.published_dss",
    "solverdistill.teachers.callable": "solverdistill.teachers.own.load",
}


class OldPaths:
    """Finds what no other finder of Python's import system does: the paths of `MOVED`.

    `from package import name` asks for `package.name` as a module where `package` has no such attribute, and so does
    hydra for a `_target_`. Hence one finder serves modules, and names of packages that are still there.
    """

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """A spec for an old path, or for a module that held some; None for all others."""
        if name in MOVED or any(old.startswith(f"{name}.") for old in MOVED):
            return ModuleSpec(name, self, is_package=True)  # pyright: ignore[reportArgumentType]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None: Python makes an empty module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put what the path stands for now in the place of the module."""
        old = module.__name__
        new = MOVED.get(old)
        if new is None:
            return
        warnings.warn(f"{old} has moved to {new}; the old path will go", FutureWarning, stacklevel=2)
        sys.modules[old] = _locate(new)


def find_old_paths() -> None:
    """Let Python's import system find old paths, after everything else."""
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(OldPaths())  # pyright: ignore[reportArgumentType]


def _locate(path: str) -> Any:
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)
