"""The node that loads a solver: a file becomes a SAMPLER and the SIGMAS that it was fitted to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths  # pyright: ignore[reportMissingImports]

from solverdistill import zoo
from solverdistill.consumers.kdiffusion import convention_of, sigmas_of
from solverdistill.programs.solver_file import SolverFile, read_solver
from solverdistill.support.files import expand

from .checks import check_model, remarks, stated_kind, states_of
from .playing import LearnedSampler, channels_of

FOLDER = "solvers"
CONVENTIONS = {"from file": None, "eps or v": "edm", "flow": "flow"}
BATCHES = {"auto": None, "as one batch": True, "one after the other": False}


def register_folder() -> None:
    """Make models/solvers one of ComfyUI's model folders, beside those of extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)
    places, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (places, {".json"})


def choices() -> list[str]:
    """Files of models/solvers, then the solvers of the zoo."""
    return [*folder_paths.get_filename_list(FOLDER), *(zoo.PREFIX + name for name in zoo.names())]


def place_of(file: str) -> Path:
    """Path of an entry of `choices`, or of any other file.

    Raises:
        ValueError: the zoo has no such solver, or there is no such user.
    """
    if file.startswith(zoo.PREFIX):
        return zoo.resolve(file)
    found = folder_paths.get_full_path(FOLDER, file)
    return expand(file) if found is None else Path(found)


def digest_of(file: str) -> str:
    """Changes when the file does, so that an edited one is read again."""
    try:
        return hashlib.sha256(place_of(file).read_bytes()).hexdigest()
    except (OSError, ValueError):  # loading says what is wrong with it
        return file


def check_file(file: str | None) -> bool | str:
    """Whether a file can be played, or the sentence why not; of a connected input nothing is known yet."""
    try:
        if file is not None:
            read_solver(place_of(file))
    except ValueError as error:
        return str(error)
    return True


def load(
    file: str, model: str = "from file", parallel: str = "auto", denoise: float = 1.0, for_model: Any = None
) -> tuple[Any, Any, str]:
    """Sampler, sigmas, and a line about the solver.

    Args:
        file: An entry of `choices`, or a path.
        model: Key of `CONVENTIONS`; for files that do not say what they were fitted to.
        parallel: Key of `BATCHES`.
        denoise: Share of the steps to take, for an image that is there already.
        for_model: The MODEL that it is for; checked here, and asked where the file does not say.
    Raises:
        ValueError: the file cannot be read, or does not go with the MODEL.
    """
    solver = read_solver(place_of(file))
    notes: list[str] = []
    convention = chosen("model", model, CONVENTIONS)
    batch = chosen("parallel", parallel, BATCHES)
    if for_model is not None:
        sampling = for_model.get_model_object("model_sampling")
        check_model(solver, sampling, convention)
        notes = list(remarks(solver, sampling, None, channels_of(for_model.model)))
        convention = convention or (states_of(sampling) if stated_kind(solver) is None else None)
    sigmas = sigmas_of(solver, convention or convention_of(solver), denoise)
    return LearnedSampler(solver, batch), sigmas, "; ".join([describe(solver, len(sigmas) - 1), *notes])


def chosen(name: str, key: str, table: Mapping[str, Any]) -> Any:
    """What a choice of the node stands for; a workflow may hold one of another version.

    Raises:
        ValueError: nothing.
    """
    if key not in table:
        raise ValueError(f"{name} of the node is {key!r}; known: {', '.join(table)}")
    return table[key]


def describe(solver: SolverFile, steps: int | None = None) -> str:
    """Name, costs and what the solver was fitted to, in a line."""
    fitted = solver.teacher.get("name")
    program, whole = solver.program, len(sigmas_of(solver, "flow")) - 1
    parts = [f"{solver.family.get('name', 'solver')}: nfe {program.nfe}, depth {program.depth}"]
    parts += [f"fitted to {fitted}"] if fitted else []
    guidance = solver.provenance.get("guidance")
    parts += [f"guidance {guidance}"] if guidance is not None else []
    parts += [f"the last {steps} of {whole} steps"] if steps not in (None, whole) else []
    return ", ".join(parts)
