"""`model=callable`: import what a user names and make a teacher of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solverdistill.denoisers.base import Teacher
from solverdistill.noise.paths import Discrete
from solverdistill.support.naming import find_by_name
from solverdistill.teachers.own.conventions import Convention
from solverdistill.teachers.own.native_levels import make_schedule
from solverdistill.teachers.own.teacher import OwnTeacher
from solverdistill.teachers.running import Running

NOISE_RANGES = {"edm": (80.0, 0.002), "flow": (1.0, 0.001), "vp": (1.0, 0.001), "cosine": (0.99, 0.001)}


def load_own(
    target: str,
    shape: Sequence[int],
    prediction: str,
    noise_schedule: str | Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
    time: str | None = None,
    time_scale: float = 1.0,
    time_offset: float = 0.0,
    discrete_times: bool = False,
    call: Sequence[str] | str | None = None,
    num_classes: int = 0,
    condition: str = "index",
    null_label: int | None = None,
    noise_range: Sequence[float] | None = None,
    data_range: Sequence[float] = (-1.0, 1.0),
    name: str | None = None,
    running: Running | Mapping[str, Any] | None = None,
) -> OwnTeacher:
    """Make a teacher from a function or class that a user names.

    Args:
        target: Dotted name, found as python finds modules, the working folder included; called with `arguments` it
            returns a module or a function.
        shape: Shape of one sample, without the batch.
        prediction: See `Convention`.
        noise_schedule: See `make_schedule`.
        arguments: Keyword arguments of the target.
        time: See `Convention`; None is "index" on a discrete schedule and "schedule" on any other.
        time_scale: See `Convention`.
        time_offset: See `Convention`.
        discrete_times: See `Convention`.
        call: See `Convention`, a list or text with commas; None is x, time, and label where there are classes.
        num_classes: Number of classes; 0 for none.
        condition: See `Convention`.
        null_label: See `Convention`.
        noise_range: Largest and smallest level in the schedule's own unit; None takes edm 80 .. 0.002, flow and vp
            1 .. 0.001, cosine 0.99 .. 0.001, and a discrete schedule from its last index to its first.
        data_range: Values of black and white in the network's data, for figures.
        name: Name in files and tables; None is the target's.
        running: How the network is run.
    Raises:
        ValueError: the target cannot be found or gives something else, or the settings do not go together.
    """
    path = make_schedule(noise_schedule)
    words = call.split(",") if isinstance(call, str) else call
    if words is None:
        words = ("x", "time", "label") if num_classes else ("x", "time")
    convention = Convention(
        prediction=prediction,
        time=time or ("index" if isinstance(path, Discrete) else "schedule"),
        time_scale=time_scale,
        time_offset=time_offset,
        discrete_times=discrete_times,
        call=tuple(word.replace(" ", "") for word in words),
        condition=condition,
        null_label=null_label,
    )
    if (num_classes > 0) != any(word.endswith("label") for word in convention.call):
        raise ValueError(f"model.num_classes={num_classes} does not go with model.call={list(convention.call)}")
    if noise_range is None:
        noise_range = (1.0, 1 / path.steps) if isinstance(path, Discrete) else NOISE_RANGES[path.name]
    ends = float(noise_range[0]), float(noise_range[1])
    black, white = (float(value) for value in data_range) if len(data_range) == 2 else (0.0, 0.0)
    if not black < white:
        raise ValueError(f"model.data_range must be two ascending numbers, not {list(data_range)}")
    network = find_by_name("model.target", target)(**dict(arguments or {}))
    if isinstance(network, Teacher) or not callable(network):
        kind = "a Teacher, which model._target_ takes itself" if isinstance(network, Teacher) else repr(network)
        raise ValueError(f"model.target {target} must return a module or a function, not {kind}")
    origin = {"target": target, "arguments": {key: str(value) for key, value in dict(arguments or {}).items()}}
    sample = tuple(int(size) for size in shape)
    teacher = OwnTeacher(network, convention, path, sample, ends, name or target, num_classes, running, origin)
    teacher.data_range = black, white
    return teacher
