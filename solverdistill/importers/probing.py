"""Samplers that are there as code -> solver files, by running them: see `one_hot`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from torch import Tensor

from solverdistill.families.learned.table import Table
from solverdistill.importers.imported import Imported
from solverdistill.importers.one_hot import Play, table_of
from solverdistill.importers.probed_functions import check_sigmas, play_function
from solverdistill.importers.probed_schedulers import hint_of, network_of, play_scheduler
from solverdistill.noise.paths import EDM, Flow
from solverdistill.programs.program import SolverProgram

FAR = 0.01  # relative difference between the level of a state and the one that the network is told


def probe(
    sampler: Any,
    steps: int | None = None,
    sigmas: Sequence[float] | Tensor | None = None,
    *,
    flow: bool = False,
    model_sampling: Any = None,
    options: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Imported:
    """Turn any deterministic sampler of fixed steps into a solver, by running it in place of reading it.

    It is run four times on tiny tensors, without a network. Save the result with `.save("solver.json")`; it is a
    `table` that training can go on from, `start=solver.json solver=table`.

    Args:
        sampler: A scheduler of diffusers; or a sampling function, called as sampler(model, x, sigmas), with
            `extra_args` and `disable` where it takes them, as those of k-diffusion and ComfyUI do. `model(x, sigma)` is
            the denoised image.
        steps: Steps of a scheduler.
        sigmas: Decreasing noise levels of a sampling function, sigma of x = x_0 + sigma n or the times of a flow model.
            Of a scheduler, its own `sigmas` argument.
        flow: The function samples a flow model, x = (1 - sigma) x_0 + sigma n.
        model_sampling: What ComfyUI's functions ask a model for, `model.get_model_object("model_sampling")`.
        options: Further arguments of the function, such as eta=0, or of the scheduler's `set_timesteps`, such as mu.
        name: The teacher's, in the file.
    Returns:
        The solver, with its remarks.
    Raises:
        ValueError: it is no table; the message says why: it draws noise, adapts its steps, clips, or steps by the
            unconditional prediction.
    """
    if hasattr(sampler, "set_timesteps"):
        if steps is None and sigmas is None:
            raise ValueError("a scheduler needs steps")
        given = {"num_inference_steps": steps, "sigmas": None if sigmas is None else [float(s) for s in sigmas]}
        arguments = {key: value for key, value in given.items() if value is not None} | dict(options or {})
        subject = _scheduler(sampler, arguments, name)
    else:
        subject = _function(sampler, check_sigmas(sigmas, flow), flow, model_sampling, dict(options or {}), name)
    program, deviation = table_of(subject.play, subject.title, subject.levels, subject.start, subject.hint)
    about = {"format": subject.title, **subject.facts, "deviation": deviation}
    return _imported(program, subject.flow, subject.teacher, about)


class Subject(NamedTuple):
    """A sampler that is to be run: see `table_of`, and what a solver file says about it."""

    title: str
    play: Play
    flow: bool
    teacher: dict[str, Any]
    facts: dict[str, Any]
    levels: list[float] | None = None
    start: tuple[float, float] | None = None
    hint: str = ""


def _scheduler(scheduler: Any, arguments: Mapping[str, Any], name: str | None) -> Subject:
    network = network_of(scheduler)
    facts = {"library": _library(type(scheduler).__module__), "config": _plain(dict(scheduler.config))}
    return Subject(
        title=type(scheduler).__name__,
        play=play_scheduler(scheduler, network, arguments),
        flow=network.prediction == "flow",
        teacher=network.description(name or "a network of diffusers"),
        facts={**facts, "arguments": _plain(arguments)},
        hint=hint_of(scheduler),
    )


def _function(
    function: Any, sigmas: Tensor, flow: bool, model_sampling: Any, options: Mapping[str, Any], name: str | None
) -> Subject:
    levels = (sigmas if flow else sigmas / (1 + sigmas)).tolist()
    teacher = {"name": name or "any network", "fingerprint": "unknown", "prediction": "flow" if flow else "denoised"}
    return Subject(
        title=getattr(function, "__qualname__", type(function).__qualname__),
        play=play_function(function, sigmas, flow, model_sampling, options),
        flow=flow,
        teacher={**teacher, "path": (Flow() if flow else EDM()).hyperparameters()},
        facts={"library": _library(getattr(function, "__module__", "")), "arguments": _plain(options)},
        levels=levels,
        start=(1 - levels[0] if flow else 1.0, float(sigmas[0])),
    )


def _imported(program: SolverProgram, flow: bool, teacher: Mapping[str, Any], about: Mapping[str, Any]) -> Imported:
    """The program as a free table, with what a user should know about it."""
    title = about["format"]
    alpha, sigma = program.level[0].tolist()
    on_flow = flow or alpha == 0  # where pure noise has a level
    table = Table.of(program, Flow() if on_flow else EDM(), sigma / (alpha + sigma) if on_flow else sigma / alpha)
    remarks = [f"on random images its table differs from {title} by {about['deviation']:.1e} of the largest pixel"]
    told = program.sigma / (program.alpha + program.sigma)
    own = program.level[: program.nfe, 1] / program.level[: program.nfe].sum(1)
    far = float(((own - told) / told).abs().max())
    if far > FAR:
        remarks.append(f"{title} tells the network noise levels that are up to {far:.1%} off those of its states")
    if float(program.level[-1, 1]) > 0:
        remarks.append(
            f"{title} ends at a noise level of {float(program.level[-1, 1] / program.level[-1, 0]):.3g}, not 0"
        )
    about = {**about, "remarks": remarks}
    provenance = {"source": f"{title}, run on one-hot vectors", "imported": about, "teacher": dict(teacher)}
    return Imported(table.source, provenance, table, table.init(0))


def _library(module: str) -> str:
    """The package that a sampler comes from, with its version where it has one."""
    package = module.split(".")[0]
    try:
        return f"{package} {version(package)}"
    except (PackageNotFoundError, ValueError):
        return package


def _plain(value: Any) -> Any:
    """What of a configuration a JSON file can hold; infinite numbers as words, other objects by their class."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
