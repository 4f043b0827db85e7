"""A live network as a teacher: `solverdistill.wrap(net, "eps", noise_schedule="vp", shape=(3, 32, 32))`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from solverdistill.denoisers.base import Teacher
from solverdistill.noise.paths import Discrete
from solverdistill.noise.paths import Path as NoisePath
from solverdistill.support.inference import with_gradients
from solverdistill.teachers.own.conventions import Convention
from solverdistill.teachers.own.first_call import answers, begin
from solverdistill.teachers.own.native_levels import choose_range, make_schedule
from solverdistill.teachers.own.sharing import shared_view
from solverdistill.teachers.own.teacher import OwnTeacher
from solverdistill.teachers.running import FrozenNetwork, Running


class LiveTeacher(OwnTeacher):
    """A network whose code may change while it is at hand, as in a notebook."""

    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) of description and tensors and of what the network answers now.

        So that trajectories of an edited function, or of one that calls a network trained further, are not taken from
        a cache. The answers' last digits differ between devices, and the fingerprint with them.
        """
        return hashlib.sha256(f"{super().fingerprint()} {answers(self)}".encode()).hexdigest()[:16]


def wrap(
    network: Callable[..., Any],
    prediction: str,
    noise_schedule: str | Mapping[str, Any] | NoisePath,
    shape: Sequence[int],
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
    """Make a teacher from a module or a function, by saying what it was trained on.

    A module stays as it is, in its mode, with its gradients and on its device: the teacher holds a frozen copy in
    evaluation mode that shares the weights' memory (and copies them when it is moved to another device, or where they
    were made in inference mode). Train the module on and the teacher changes with it. A function is called as it is:
    what it uses must be in evaluation mode, made outside of inference mode, and frozen lest a fit fill its `.grad`; it
    is not moved, and is given states in the dtype that it was found to take. The network is called a few times on
    noise, here and whenever the fingerprint is asked for.

    Args:
        network: The module or function; a `FrozenNetwork` is taken as it is and not called.
        prediction: See `Convention`.
        noise_schedule: See `make_schedule`.
        shape: Shape of one sample, without the batch.
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
        name: Name in files and tables; None is that of its class or of the function.
        running: How the network is run.
        time_shape: See `Convention`.
        noise_range_sigma: Largest and smallest sigma / alpha, instead of `noise_range`.
    Raises:
        ValueError: the settings do not go together, or the network cannot be called as they say.
    """
    if isinstance(network, Teacher) or isinstance(network, type) or not callable(network):
        raise ValueError(f"wrap takes a module or a function, not {_kind(network)}")
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
        time_shape=(time_shape,) if isinstance(time_shape, int) else tuple(time_shape),
    )
    if (num_classes > 0) != any(word.endswith("label") for word in convention.call):
        raise ValueError(f"model.num_classes={num_classes} does not go with model.call={list(convention.call)}")
    ends = choose_range(path, noise_range, noise_range_sigma)
    black, white = (float(value) for value in data_range) if len(data_range) == 2 else (0.0, 0.0)
    if not black < white:
        raise ValueError(f"model.data_range must be two ascending numbers, not {list(data_range)}")
    sample = _sample_shape(shape)
    label, origin = name or _label(network), {"target": _dotted(network)}
    if isinstance(network, FrozenNetwork):
        teacher = OwnTeacher(network, convention, path, sample, ends, label, num_classes, running, origin)
    else:
        with with_gradients():
            view = shared_view(network)
            teacher = LiveTeacher(view, convention, path, sample, ends, label, num_classes, running, origin)
            begin(teacher)
    teacher.data_range = black, white
    return teacher


def _sample_shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        side = shape if isinstance(shape, int) else 28
        raise ValueError(
            f"model.shape={shape} must list the sizes of one sample without the batch, as [1,{side},{side}] for an "
            f"image of one channel or [{side}] for a vector"
        )
    return sizes


def _named(network: Callable[..., Any]) -> Any:
    """What bears the network's name: a function itself, else its class."""
    return network if hasattr(network, "__qualname__") else type(network)


def _dotted(network: Callable[..., Any]) -> str:
    named = _named(network)
    return f"{named.__module__}.{named.__qualname__}"


def _label(network: Callable[..., Any]) -> str:
    return _named(network).__name__.strip("<>")


def _kind(network: Any) -> str:
    if isinstance(network, Teacher):
        return f"{network.name}, a Teacher, which is used itself"
    return f"the class {network.__name__}: call it first" if isinstance(network, type) else repr(network)
