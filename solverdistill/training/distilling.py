"""`distill`: fit a solver to a teacher in one Python call, as `train.py` does, and write nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from solverdistill.denoisers.base import Teacher
from solverdistill.families.base import Family
from solverdistill.families.student import Student
from solverdistill.fits.protocol import Fit
from solverdistill.support.inference import replace_inference_weights
from solverdistill.support.instantiate import instantiate
from solverdistill.support.processes import pick_device
from solverdistill.support.progress import TargetProgress
from solverdistill.training.budget import Budget, within
from solverdistill.training.compose import Choice, compose, merge, options_of
from solverdistill.training.config_files import find_configs
from solverdistill.training.configuration import Run, check_config
from solverdistill.training.descent import refuse_unused
from solverdistill.training.distilled import Distilled
from solverdistill.training.exporting import make_provenance
from solverdistill.training.isolation import own_surroundings
from solverdistill.training.screen import Screen, say_costs, say_hello, say_spent
from solverdistill.training.stages import Watcher, fit_all
from solverdistill.training.students import NFE

Settings = Mapping[str, Any]


def load_teacher(name: str, settings: Settings | None = None) -> Teacher:
    """A pretrained teacher by its name, as `model=` names it.

    Args:
        name: A file of configs/model, for example "edm_digits" or "sd15".
        settings: Settings to change, for example ``{"weights": "my.pt"}``.
    Raises:
        ValueError: there is no such teacher or setting, or it cannot be loaded; the message says what would do.
    """
    config = compose(find_configs(), {"model": name})
    change(config["model"], settings or {}, f"model {name}")
    return instantiate(config["model"], "model")


def distill(
    teacher: str | Teacher,
    solver: str | Settings | Family | None = None,
    nfe: int | None = None,
    guidance: float | Settings | None = None,
    *,
    fit: str | Sequence[str] | Mapping[str, Settings | None] | None = None,
    objective: str | Settings | None = None,
    optimizer: str | Settings | None = None,
    targets: str | Settings | None = None,
    start: str | Path | None = None,
    budget: str | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool | None = None,
) -> Distilled:
    """Fit a solver of few evaluations to a frozen network; the same numbers as `train.py` with the same settings.

    >>> done = distill("edm_digits", solver="gas", nfe=6)
    >>> done.save("solver.json")

    A group of settings is a name as on the command line, or a mapping of settings that differ from the default ones.
    Nothing is written but the cache of reference trajectories (``targets={"cache": None}`` keeps them in memory), and
    random generators, warning filters and logging are left as they were. Inside `torch.inference_mode()` it does the
    same; weights of a live teacher that were made there are replaced by copies, through which gradients go.

    Args:
        teacher: A name of configs/model, or a live teacher: of `wrap`, `load_teacher`, or a class of your own.
        solver: A name of configs/solver, the dotted name of a family of your own, a mapping of settings with `name`
            among them, or a family on its grid; no name stands for the default of `train.py`.
        nfe: Evaluations of the network per sample; None for the solver's default.
        guidance: Guidance scale; or a mapping of scale, interval and channels; None is 1, or what a pipeline does.
        fit: Fits in their order: a name, several, or a mapping from names to settings; None for the default.
        objective: What gradient descent compares; None for the solver's own.
        optimizer: Of gradient descent; None for the solver's own.
        targets: Reference solver, numbers of samples, seed, cache.
        start: Solver file to begin at, or "zoo:<name>": the solver is its family, at its params, or a `table` where it
            has none; solver and nfe have to agree with it, and the fits end no worse than it on held-out samples.
        budget: What the call may cost, as "2000evals" (forward equivalents, references included) or "20min": sizes that
            are not given are planned; None for those of the defaults.
        seed: Seed of initial params and of samples drawn.
        device: Where the network runs; None for where a live teacher is, or an accelerator where there is one.
        progress: Show bars and what was reached; None shows them in a terminal and a notebook.
    Raises:
        ValueError, TypeError: a setting cannot be used; the message says which and what would do.
    """
    groups = {"fit": fit, "objective": objective, "optimizer": optimizer, "targets": targets}
    check_kinds(teacher, solver)
    config = configure(teacher, solver, nfe, {name: value for name, value in groups.items() if value is not None})
    config.update(seed=seed, guidance=dict(guidance) if isinstance(guidance, Mapping) else guidance)
    config.update(start=None if start is None else str(start), budget=budget)
    limit = None if budget is None else Budget.read(budget)
    check_config(config)
    live = teacher if isinstance(teacher, Teacher) else None
    student = Student.of(solver) if isinstance(solver, Family) else None
    shown = (sys.stdout.isatty() or "ipykernel" in sys.modules) if progress is None else progress
    with own_surroundings(seed):
        run = Run.of(config, live, student, asked_of(solver, nfe, start))
        where = place_of(live) if device is None else pick_device(device)
        plan = run.plan(lambda settings: trainer_of(settings, where, shown))
        plan.check()
        if not run.descends:
            refuse_unused((name for name in ("objective", "optimizer") if groups[name] is not None), run.fits)
        replace_inference_weights(run.denoiser)
        run.denoiser.to(where)
        if limit is not None:
            run = within(run, limit, stated_in(groups), where, TargetProgress() if shown else None)
            plan = run.plan(lambda settings: trainer_of(settings, where, shown))
        if shown:
            say_hello(run)
        data = run.data(run.student, where, TargetProgress() if shown else None)
        costs = say_costs(run, plan, data) if shown else None
        standing = fit_all(plan, run.begin, data, Watcher() if costs is None else Screen(costs))
        if costs is not None:
            say_spent(costs, standing.reports)
    family = standing.student.family
    params = family.init(seed) if standing.params is None else standing.params
    provenance = make_provenance(run.config, run.teacher, data.choice, standing.reports)
    return Distilled(family, params, float(standing.rmse or 0.0), standing.reports, provenance, run, data)


def check_kinds(teacher: Any, solver: Any) -> None:
    """Refuse what is neither a name nor what a name stands for.

    Raises:
        TypeError: it is something else; the message says what makes a teacher or a solver of it.
    """
    if not isinstance(teacher, (str, Teacher)):
        raise TypeError(
            f"the teacher of distill is a name of configs/model or a Teacher, which a {type(teacher).__name__} is not; "
            "of a network of your own make one with solverdistill.wrap"
        )
    if solver is not None and not isinstance(solver, (str, Mapping, Family)):
        raise TypeError(
            f"the solver of distill is a name, a mapping of settings or a family on its grid, not {solver!r}; a family "
            "of your own goes by its dotted name"
        )


def configure(
    teacher: str | Teacher, solver: str | Settings | Family | None, nfe: int | None, groups: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration that a call stands for, as plain containers.

    Args:
        teacher: See `distill`; of a live one the description takes the place of its settings.
        solver: See `distill`.
        nfe: See `distill`.
        groups: What was given for fit, objective, optimizer and targets.
    """
    folder = find_configs()
    choices, settings = divide(groups)
    if isinstance(teacher, str):
        choices["model"] = teacher
    name = solver.name if isinstance(solver, Family) else solver.get("name") if isinstance(solver, Mapping) else solver
    shipped = name is None or name in options_of(folder, "solver")
    if name is not None and (shipped or (isinstance(solver, str) and "." not in solver)):
        choices["solver"] = name
    config = compose(folder, choices)
    for group, own in settings.items():
        change(config.get(group, {}), own, group)
    if isinstance(teacher, Teacher):
        config["model"] = teacher.description()
    config["solver"] = solver_settings(solver, config["solver"], shipped)
    if nfe is not None:
        if isinstance(solver, Family) and solver.nfe != nfe:
            raise ValueError(f"the {solver.name} that was given spends {solver.nfe} evaluations, not nfe={nfe}")
        if isinstance(solver, Mapping) and solver.get("nfe", nfe) not in (nfe, None):
            raise ValueError(f"nfe={nfe} and the solver's own nfe={solver['nfe']} disagree; give one of them")
        config["solver"]["nfe"] = nfe
    return config


def asked_of(solver: str | Settings | Family | None, nfe: int | None, start: str | Path | None) -> dict[str, Any]:
    """Settings of the solver that a call states; see `distill`.

    Raises:
        ValueError: it gives a family and a file to begin at.
    """
    if start is not None and isinstance(solver, Family):
        raise ValueError(f"solver={solver.name} is a family on its grid and start={start} brings its own; give one")
    named = {"name": solver} if isinstance(solver, str) else dict(solver) if isinstance(solver, Mapping) else {}
    return {**named, "nfe": nfe}


def stated_in(groups: Mapping[str, Any]) -> list[str]:
    """Settings of groups that were given, as "targets.train_samples"."""

    def below(value: Any, where: str) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, own in value.items():
                yield from below(own, f"{where}.{key}")
        yield where

    return [name for group, value in groups.items() if value is not None for name in below(value, group)]


def divide(groups: Mapping[str, Any]) -> tuple[dict[str, Choice], dict[str, Settings]]:
    """Which options of groups were chosen, and which of their settings differ.

    Raises:
        TypeError: one was given as something else.
    """
    choices: dict[str, Choice] = {}
    settings: dict[str, Settings] = {}
    for group, value in groups.items():
        if isinstance(value, str):
            choices[group] = value
        elif group == "fit" and isinstance(value, (Mapping, Sequence)):
            choices["fit"] = list(value)
            settings["fit"] = {fit: own for fit, own in value.items() if own} if isinstance(value, Mapping) else {}
        elif isinstance(value, Mapping):
            settings[group] = value
        else:
            raise TypeError(f"{group} is a name or a mapping of settings, not {value!r}")
    return choices, settings


def solver_settings(solver: str | Settings | Family | None, composed: Settings, shipped: bool) -> dict[str, Any]:
    """The settings of a solver.

    Args:
        solver: See `distill`.
        composed: Settings of the solver's configuration, or of the default one.
        shipped: Whether the solver has a configuration; of another one, grid and path are the default ones.
    """
    if isinstance(solver, Family):
        return {**solver.hyperparameters(), "nfe": solver.nfe}
    base = dict(composed) if shipped else {key: composed[key] for key in ("grid", "path")} | {"nfe": NFE}
    own = {"name": solver} if isinstance(solver, str) else solver or {}
    return merge(base, {**own, "name": own.get("name", composed["name"])})


def change(config: dict[str, Any], settings: Settings, where: str) -> None:
    """Change settings of a group.

    Raises:
        ValueError: it has no such setting.
    """
    for key, value in settings.items():
        if key not in config:
            known = ", ".join(name for name in config if not name.startswith("_"))
            raise ValueError(f"{where} has no setting {key!r}; it has: {known}")
        if isinstance(value, Mapping) and isinstance(config[key], dict):
            change(config[key], value, f"{where}.{key}")
        else:
            config[key] = dict(value) if isinstance(value, Mapping) else value


def place_of(teacher: Teacher | None) -> str:
    """The device of a live teacher's numbers, or the best one of this machine."""
    if isinstance(teacher, nn.Module):
        for value in (*teacher.parameters(), *teacher.buffers()):
            return str(value.device)
    return pick_device("auto")


def trainer_of(fit: Fit, device: str, progress: bool) -> Any:
    """The trainer of a fit with an optimizer; Lightning is loaded here and not before."""
    from solverdistill.training.trainer import quiet_trainer

    return quiet_trainer(fit, device, progress)
