"""Turn a solver into the numbers of a `LearnedSolverScheduler`: rows in the network's own scale, and its timesteps.

A row of an evaluation comes out of a program at unit standard deviation of the told level; it is multiplied by
``1 / hypot(alpha, sigma)`` (1 there) or, for flow networks, ``1 / (alpha + sigma)``. The sample keeps the solver's own
scale. Nothing here runs at inference.

For a teacher that told its network integers (`discrete_times`), the solver is first rewritten so that every level is
one of the network's table (`teachers.integer_times`), and timesteps are integers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from solverdistill.consumers.network_schedule import NetworkSchedule
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import SolverFile, read_solver
from solverdistill.support.json_files import read_json_object
from solverdistill.teachers.own.integer_times import snap_program

OWN_SCALE = ("StableDiffusionLatentUpscalePipeline",)  # undoes the preconditioning of Euler's method by itself


def scheduler_config(solver: Any, target: Any = None, initial_noise: str = "unit") -> dict[str, Any]:
    """Arguments of `LearnedSolverScheduler` for a solver and a network.

    Warns where the network was not trained at a told level, and where a flow pipeline would start it from noise of
    another size.

    Args:
        solver: Path of a solver.json, `SolverFile` or `SolverProgram`.
        target: Pipeline, scheduler, or scheduler configuration; None takes the teacher that the file names.
        initial_noise: "unit" or "scaled", see the scheduler.
    Returns:
        JSON-able values.
    Raises:
        ValueError: the program has several inputs or no evaluation, or the network is not known.
    """
    file = as_solver_file(solver)
    teacher = file.teacher
    if type(target).__name__ in OWN_SCALE:
        raise ValueError(f"{type(target).__name__} computes with its scheduler's states; only that scheduler has them")
    network = find_network(target, teacher)
    timesteps, levels, rows = convert(snap_program(file.program, teacher), network)
    if teacher.get("discrete_times"):
        timesteps = whole_timesteps(timesteps, 0 if target is not None else int(teacher.get("time_offset", 0)))
    for timestep in () if teacher.get("discrete_times") else timesteps:
        if not network.is_inside(timestep):
            warnings.warn(
                f"the solver asks for timestep {timestep:.6g}, outside of the {network.steps} that the network knows",
                stacklevel=2,
            )
            break
    if network.is_flow and initial_noise == "unit" and abs(rows[0][0] - 1) > 5e-3:
        warnings.warn(
            f"this solver starts from {rows[0][0]:.4g} times unit noise and flow pipelines start from unit noise; for "
            f'its exact start use initial_noise="scaled" and latents=noise * scheduler.init_noise_sigma',
            stacklevel=2,
        )
    guidance = file.provenance.get("guidance")
    if isinstance(guidance, Mapping):
        warnings.warn(
            f"this solver was fitted with guidance {dict(guidance)}, of which a pipeline knows a scale alone",
            stacklevel=2,
        )
        guidance = guidance.get("scale")
    return {
        "solver_timesteps": timesteps,
        "solver_levels": levels,
        "solver_rows": rows,
        "prediction_type": network.prediction,
        "initial_noise": initial_noise,
        "guidance_scale": float(guidance) if isinstance(guidance, (int, float)) else None,
        "solver": f"{file.family.get('name', 'solver')}, {file.program.nfe} evaluations, depth {file.program.depth}",
        "use_flow_sigmas": network.is_flow,
        "num_train_timesteps": network.steps,
        **network.description,
    }


def convert(
    program: SolverProgram, network: NetworkSchedule
) -> tuple[list[float], list[list[float]], list[list[float]]]:
    """Timesteps, native levels and native rows of a program.

    Raises:
        ValueError: the program has several inputs, no evaluation, or a level without a timestep (alpha = 0).
    """
    if program.inputs != 1 or program.nfe == 0:
        raise ValueError(
            f"a scheduler plays a program of 1 input and 1 or more evaluations, not {program.inputs} and {program.nfe}"
        )
    program = program.detach().to("cpu")
    told = list(zip(program.alpha.tolist(), program.sigma.tolist(), strict=True))
    scales = [network.scale(alpha, sigma) for alpha, sigma in told]
    timesteps = [network.timestep(alpha, sigma) for alpha, sigma in told]
    levels = [[alpha * scale, sigma * scale] for (alpha, sigma), scale in zip(told, scales, strict=True)]
    table = torch.cat([program.A, program.B], dim=1)
    last = table[-1].tolist()
    rows = [[value * scale for value in table[k, : k + 1].tolist()] for k, scale in enumerate(scales)]
    return timesteps, levels, [*rows, last]


def whole_timesteps(timesteps: Sequence[float], offset: int = 0) -> list[int]:
    """Timesteps of a network that takes integers, of a solver whose levels are those of its table.

    Args:
        timesteps: What the levels are called on the network's schedule.
        offset: Timestep of the first entry of the table.
    Raises:
        ValueError: one is no integer, so that the schedule is another one than the solver's.
    """
    whole = [round(timestep) for timestep in timesteps]
    for timestep, integer in zip(timesteps, whole, strict=True):
        if abs(timestep - integer) > 0.01:
            raise ValueError(
                f"the solver was fitted for a network with integer timesteps on another schedule: here one of them is "
                f"{timestep:.6g}; give the scheduler that the network was trained with"
            )
    return [integer + offset for integer in whole]


def replaced_config(target: Any) -> dict[str, Any]:
    """All that the configuration of a scheduler says, private keys left out but for the names of its own defaults.

    Args:
        target: As in `scheduler_config`; nothing is known of None.
    """
    config = _config_of(target)
    return {key: value for key, value in config.items() if key[0] != "_" or key == "_use_default_values"}


def find_network(target: Any, teacher: Any) -> NetworkSchedule:
    """The network's schedule, from a pipeline, scheduler, configuration, its file or folder, or a teacher description.

    Raises:
        ValueError: nothing says what the network predicts.
        FileNotFoundError: a folder without scheduler_config.json.
    """
    if target is None:
        return NetworkSchedule.from_teacher(teacher if isinstance(teacher, Mapping) else {})
    return NetworkSchedule.from_config(_config_of(target))


def _config_of(target: Any) -> dict[str, Any]:
    if target is None:
        return {}
    if isinstance(target, (str, os.PathLike)):
        target = _read_config(Path(target))
    target = getattr(target, "scheduler", target)
    if isinstance(target, Mapping):
        return dict(target)
    if not hasattr(target, "config"):
        raise ValueError(f"a pipeline, a scheduler or its configuration is needed, not {type(target).__name__}")
    return {"_class_name": type(target).__name__, **target.config}


def as_solver_file(solver: Any) -> SolverFile:
    """Read a path; wrap a program."""
    if isinstance(solver, SolverProgram):
        return SolverFile(solver)
    return solver if isinstance(solver, SolverFile) else read_solver(solver)


def _read_config(path: Path) -> dict[str, Any]:
    places = (path, path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path} holds no scheduler_config.json; name the folder of a pipeline or scheduler")
    return read_json_object(found)
