"""Other readings of a network than the one stated: what a user may have meant, one mistake away, by what to set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from solverdistill.noise.paths import Path
from solverdistill.teachers.own.conventions import Convention
from solverdistill.teachers.own.native_levels import PREDICTIONS, make_schedule, usual_range

SCHEDULES = {
    "vp": "vp",
    "flow": "flow",
    "cosine": "cosine",
    "edm": "edm",
    "{name:discrete,beta_schedule:linear,beta_start:1e-4,beta_end:0.02,steps:1000}": {
        "name": "discrete", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000,
    },
    "{name:discrete,beta_schedule:scaled_linear,steps:1000}": "discrete",
    "{name:discrete,beta_schedule:cosine,steps:1000}": {"name": "discrete", "beta_schedule": "cosine", "steps": 1000},
}  # fmt: skip
UNITS = (1000.0, 0.001)
ALMOST = 0.99  # where an eps network begins on a schedule that ends in pure noise


@dataclass(frozen=True)
class Reading:
    """A convention on a noise schedule, and the range to sample in.

    Args:
        name: What to set, as on a command line.
        convention: What the network expects and predicts.
        path: The noise schedule.
        noise_range: Largest and smallest level, in the schedule's own unit.
    """

    name: str
    convention: Convention
    path: Path
    noise_range: tuple[float, float]


def readings(convention: Convention, path: Path, noise_range: tuple[float, float]) -> Iterator[Reading]:
    """Prediction type and direction of time together; the unit of time; the noise schedule with its usual time.

    Those that do not go together with a schedule are left out.
    """
    steps = path.name == "discrete"
    times = [convention.time, "schedule", "reversed", *(["index"] if steps else [])]
    for time in times[:1] if convention.discrete_times else dict.fromkeys(times):
        for prediction in PREDICTIONS:
            changed = {"prediction": prediction, "time": time}
            if changed != {key: getattr(convention, key) for key in changed}:
                yield from _possible(replace(convention, **changed), convention, path, noise_range)
    for factor in () if convention.discrete_times else UNITS:
        other = replace(convention, time_scale=convention.time_scale * factor)
        yield from _possible(other, convention, path, noise_range)
    for name, schedule in SCHEDULES.items():
        other_path = make_schedule(schedule)
        if other_path != path:
            yield from _on_schedule(name, other_path, convention, path)


def _on_schedule(name: str, path: Path, convention: Convention, own: Path) -> Iterator[Reading]:
    """The network on another schedule, told the usual number of that schedule in the units that it may have."""
    start, end = usual_range(path)
    if convention.prediction == "eps" and float(path.alpha(start)) <= 0:
        start = ALMOST
    if path.name == "discrete":
        # An index is what networks on discrete schedules are told, or its share of all steps.
        told = [("index", 1.0, convention.discrete_times)]
        told += [("index", convention.time_scale, convention.discrete_times)] if own.name == "discrete" else []
    else:
        kept = "schedule" if convention.time == "index" else convention.time
        told = [(kept, 1.0, False), (kept, 1000.0, False), (kept, convention.time_scale, False)]
    for time, scale, integers in dict.fromkeys(told):
        if integers and scale != 1:
            continue
        other = replace(convention, time=time, time_scale=scale, discrete_times=integers)
        for reading in _possible(other, convention, path, (start, end)):
            yield replace(reading, name=f"noise_schedule={name} {reading.name}".strip())


def _possible(
    convention: Convention, own: Convention, path: Path, noise_range: tuple[float, float]
) -> Iterator[Reading]:
    changed = {
        key: getattr(convention, key) for key in ("prediction", "time", "time_scale", "discrete_times")
        if getattr(convention, key) != getattr(own, key)
    }  # fmt: skip
    try:
        convention.check(path, noise_range)
    except ValueError:
        return
    name = " ".join(f"{key}={value:g}" if key == "time_scale" else f"{key}={value}" for key, value in changed.items())
    yield Reading(name, convention, path, noise_range)
