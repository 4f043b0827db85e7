"""From a pipeline and the arguments of its call to the parts of a teacher, checked on its own sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from solverdistill.teachers.diffusers.pipelines.convention import Convention, check_steps, read_convention
from solverdistill.teachers.diffusers.pipelines.guidance import find_argument, refuse_by_number, scale_of, with_scale
from solverdistill.teachers.diffusers.pipelines.joining import Unexplained, digest_of
from solverdistill.teachers.diffusers.pipelines.replaying import Replay, call_arguments, log
from solverdistill.teachers.diffusers.pipelines.view import View
from solverdistill.teachers.diffusers.pipelines.watching import Run, watch

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Setting:
    """A pipeline and how it is called.

    Args:
        pipe: The pipeline.
        prompts: Arguments of the call that stand for one prompt each.
        prompted: Whether these are prompts to draw from; else there is one way to call the pipeline.
        arguments: Arguments of the call that all samples share.
        guidance: Guidance scale; None for what the arguments, or the pipeline's defaults, say.
        guidance_argument: Name of the argument that holds it; None finds it.
        noise_range: Largest and smallest noise level; None for all.
        name: Name of the teacher; None for that of the pipeline's class.
    """

    pipe: Any
    prompts: Sequence[Mapping[str, Any]]
    prompted: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    guidance_argument: str | None = None
    noise_range: tuple[float, float] | None = None
    name: str | None = None

    @property
    def label(self) -> str:
        return self.name or type(self.pipe).__name__

    def at(self, guidance: float) -> Setting:
        """The same at another guidance scale."""
        return replace(self, guidance=guidance)

    def description(self) -> dict[str, Any]:
        """What decides what the pipeline computes, JSON-able."""
        plain = (int, float, str, bool, type(None))
        shared = {k: v if isinstance(v, plain) else digest_of(v)[:16] for k, v in self.arguments.items()}
        facts: dict[str, Any] = {"pipeline": type(self.pipe).__name__, "arguments": shared}
        if self.prompted:
            facts["prompts"] = len(self.prompts)
        return facts


def make_parts(setting: Setting) -> tuple[Replay, Convention, Shapes, float]:
    """Watch a pipeline, and check that one evaluation at a time it computes what it does in its own sampling.

    Returns:
        Its call for one evaluation, its conventions, the shapes of one sample's states, and its guidance scale.
    Raises:
        ValueError: it does not, or it resists in another way; the message says which.
    """
    scheduler = setting.pipe.scheduler
    view = View(setting.pipe)
    everything = {**setting.arguments, **setting.prompts[0]}
    for name in everything:
        if not view.takes(name):
            known = ", ".join(list(view.parameters)[1:])
            raise ValueError(f"{view.name} takes no argument {name}; its call takes: {known}")
    refuse_by_number(view, everything)
    argument = find_argument(view, everything, setting.guidance_argument)
    changed = with_scale(view, everything, argument, setting.guidance)
    arguments = dict(setting.arguments)
    if argument in changed:
        arguments[argument] = changed[argument]
    for part in view.parts.values():
        part.eval()
    one = call_arguments(view, arguments, setting.prompts, [0])
    run = watch(view, scheduler, one)
    convention = read_convention(scheduler, run)
    replay = Replay(view, scheduler, run, arguments, setting.prompts)
    for network in view.networks.values():
        network.requires_grad_(False)
    replay.learn_batches()
    shapes: Shapes = [tuple(run.first(stream).shape[1:]) for stream in range(run.streams)]
    if any(run.first(stream).shape[0] != 1 for stream in range(run.streams)):
        raise ValueError(f"{view.name} has states of shape {tuple(run.first(0).shape)} for one sample, not one row")
    with torch.no_grad():
        check_outputs(replay, convention, run)
        check_batch(replay, run)
    check_steps(convention, scheduler, run, 1e-3 if _is_fine(run.first(0)) else 3e-2)
    return replay, convention, shapes, scale_of(view, changed, argument)


def check_outputs(replay: Replay, convention: Convention, run: Run) -> None:
    """Compare the network's output in every step of the pipeline's own with that of one evaluation alone.

    Raises:
        ValueError: they differ, or the state that is handed over is not the one that arrives.
    """
    name, steps, streams = replay.view.name, run.diary.steps, run.streams
    for k in range(len(steps) // streams):
        own = steps[k * streams : (k + 1) * streams]
        answers, _ = _ask_at(replay, run, k, [0], [step.given for step in own])
        for step, (output, arrived), dtype in zip(own, answers, replay.dtypes, strict=True):
            handed = step.given.to(dtype).to(arrived.dtype)
            if arrived.shape != handed.shape or not torch.equal(arrived, handed):
                raise ValueError(f"{name} changes a state that it is given before its scheduler sees it")
            error = _difference(output, step.output)
            if not error <= (1e-4 if _is_fine(step.output) else 5e-2):
                raise ValueError(
                    f"step {k + 1} of {len(steps) // streams} of {name} gives another output within its own sampling "
                    f"than alone ({error:.1e} of its size): it keeps something between steps, or guides by the number "
                    "of the step"
                )


def check_batch(replay: Replay, run: Run) -> None:
    """Evaluate two samples at once and one by one; where that differs, take one by one from now on."""
    if replay.rules is None:
        return
    states = [torch.cat([run.diary.steps[j].given, run.diary.steps[j].given.flip(-1)]) for j in range(run.streams)]
    rows = [0, 0]
    try:
        together, _ = _ask_at(replay, run, 0, rows, states)
        alone = [_ask_at(replay, run, 0, [0], [state[j : j + 1] for state in states])[0] for j in (0, 1)]
        for stream in range(run.streams):
            whole = torch.cat([answers[stream][0] for answers in alone])
            error = _difference(together[stream][0], whole)
            if not error <= (1e-3 if _is_fine(whole) else 5e-2):
                raise Unexplained(f"a batch differs from its samples by {error:.1e}")
    except (Unexplained, ValueError, RuntimeError, TypeError, IndexError) as reason:
        log.info("%s evaluates sample by sample: %s", replay.view.name, " ".join(str(reason).split())[:200])
        replay.rules = None


def _ask_at(
    replay: Replay, run: Run, k: int, rows: list[int], states: Sequence[Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Ask at the time and level of a step of the pipeline's own."""
    sigmas, dtype = run.diary.sigmas, torch.promote_types(replay.dtypes[0], torch.float32)
    sigma = torch.tensor(sigmas[k] if k < len(sigmas) else 0.5, dtype=dtype)
    return replay.ask(rows, states, torch.tensor(run.diary.steps[k * run.streams].time, dtype=dtype), sigma)


def _difference(one: Tensor, two: Tensor) -> float:
    """Largest deviation, relative to the largest entry; infinite for other shapes."""
    if one.shape != two.shape:
        return float("inf")
    size = float(two.abs().max()) or 1.0
    return float((one.double() - two.double()).abs().max()) / size


def _is_fine(value: Tensor) -> bool:
    return value.dtype in (torch.float32, torch.float64)
