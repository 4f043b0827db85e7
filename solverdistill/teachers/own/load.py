"""`model=callable`: import what a user names and make a teacher of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from solverdistill.denoisers.base import Teacher
from solverdistill.support.naming import find_by_name
from solverdistill.teachers.own.first_call import begin
from solverdistill.teachers.own.teacher import OwnTeacher
from solverdistill.teachers.own.wrap import wrap
from solverdistill.teachers.running import FrozenNetwork, Running


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
    time_shape: Sequence[int] | int = (),
    noise_range_sigma: Sequence[float] | None = None,
) -> OwnTeacher:
    """Make a teacher from a function or class that a user names: `wrap`, for what it returns.

    Args:
        target: Dotted name, found as python finds modules, the working folder included; called with `arguments` it
            returns a module, which is frozen itself and not copied, or a function.
        shape: See `wrap`, as all that follows.
        prediction: See `Convention`.
        noise_schedule: See `make_schedule`.
        arguments: Keyword arguments of the target.
        time: See `Convention`.
        time_scale: See `Convention`.
        time_offset: See `Convention`.
        discrete_times: See `Convention`.
        call: See `Convention`.
        num_classes: Number of classes; 0 for none.
        condition: See `Convention`.
        null_label: See `Convention`.
        noise_range: Largest and smallest level in the schedule's own unit.
        data_range: Values of black and white in the network's data, for figures.
        name: Name in files and tables; None is the target's.
        running: How the network is run.
        time_shape: See `Convention`.
        noise_range_sigma: Largest and smallest sigma / alpha, instead of `noise_range`.
    Raises:
        ValueError: the target cannot be found or gives something else, the settings do not go together, or the
            network cannot be called as they say.
    """
    network = _made(target, dict(arguments or {}))
    if isinstance(network, Teacher) or not callable(network):
        kind = "a Teacher, which model._target_ takes itself" if isinstance(network, Teacher) else repr(network)
        raise ValueError(f"model.target {target} must return a module or a function, not {kind}")
    teacher = wrap(
        FrozenNetwork(network, running) if isinstance(network, nn.Module) else network,
        prediction,
        noise_schedule,
        shape,
        time=time,
        time_scale=time_scale,
        time_offset=time_offset,
        discrete_times=discrete_times,
        call=call,
        num_classes=num_classes,
        condition=condition,
        null_label=null_label,
        noise_range=noise_range,
        data_range=data_range,
        name=name or target,
        running=running,
        time_shape=time_shape,
        noise_range_sigma=noise_range_sigma,
    )
    if isinstance(network, nn.Module):
        begin(teacher)
    teacher.origin = {"target": target, "arguments": {key: str(value) for key, value in dict(arguments or {}).items()}}
    return teacher


def _made(target: str, arguments: dict[str, Any]) -> Any:
    """What the target returns."""
    load = find_by_name("model.target", target)
    try:
        inspect.signature(load).bind(**arguments)
    except TypeError as error:
        given = f"model.arguments={{{','.join(arguments)}}}" if arguments else "no model.arguments"
        raise ValueError(
            f"model.target {target} cannot be called with {given} ({error}); it has to be a function or class that "
            "returns the network, not the network's own function"
        ) from None
    except ValueError:  # a function of C has no signature
        pass
    return load(**arguments)
