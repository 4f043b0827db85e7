"""Write the folder that `LearnedSolverScheduler.from_pretrained` reads."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from solverdistill.support.files import write_atomically

STANDALONE = "learned_solver_scheduler.py"


def write_scheduler(
    solver: Any,
    folder: str | os.PathLike[str],
    target: Any = None,
    standalone: bool = False,
    initial_noise: str = "unit",
) -> list[Path]:
    """Write the folder that ``LearnedSolverScheduler.from_pretrained(folder)`` reads.

    Args:
        solver: As in `scheduler_config`.
        folder: Made where it is missing.
        target: As in `scheduler_config`.
        standalone: Also write the scheduler itself as one module that needs diffusers and torch alone.
        initial_noise: As in `scheduler_config`.
    Returns:
        The files written.
    """
    from solverdistill.consumers.diffusers import LearnedSolverScheduler

    scheduler = LearnedSolverScheduler.from_solver(solver, target, initial_noise)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scheduler.save_pretrained(folder)
    written = [folder / "scheduler_config.json"]
    if standalone:
        source = resources.files("solverdistill.consumers").joinpath("diffusers.py").read_text(encoding="utf-8")
        written.append(write_atomically(folder / STANDALONE, source))
    return written
