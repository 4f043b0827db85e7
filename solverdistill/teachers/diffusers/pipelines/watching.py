"""A few steps of a pipeline's own sampling, and what they say about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solverdistill.teachers.diffusers.pipelines.joining import mapped, tensors_of
from solverdistill.teachers.diffusers.pipelines.schedulers import Diary, Step, watched
from solverdistill.teachers.diffusers.pipelines.view import View

STEPS = 4
STEP_ARGUMENTS = ("num_inference_steps", "num_steps", "steps")
Key = tuple[str, int]  # name of a method, and which call of it


@dataclass(frozen=True)
class Place:
    """Where a pipeline makes its first state.

    Args:
        key: The method that returns it.
        index: Which of the tensors that it returns.
        dim: Dimension along which the state comes first and something else may follow, as a mask of conditions.
        dtype: Of that tensor.
    """

    key: Key
    index: int
    dim: int
    dtype: torch.dtype


@dataclass(eq=False)
class Entry:
    """A method of the pipeline that was called before its first step.

    Args:
        key: Which one.
        parts: Components that ran in it.
        result: What it returned.
    """

    key: Key
    parts: set[str] = field(default_factory=set)
    result: Any = None


@dataclass(eq=False)
class Run:
    """What was seen in a few steps of a pipeline.

    Args:
        diary: What its scheduler was asked for.
        streams: Calls of `step` that make one step.
        networks: Names of the components that ran between two steps.
        entries: Methods called before the first step, and not after it.
    """

    diary: Diary
    streams: int
    networks: list[str]
    entries: list[Entry]

    def of_first_stream(self) -> list[Step]:
        """The steps of the first of the states that are denoised side by side."""
        return self.diary.steps[:: self.streams]

    def first(self, stream: int) -> Tensor:
        """The state before the first step."""
        return self.diary.steps[stream].sample

    def find_state(self, stream: int) -> Place | None:
        """Where the first state comes from; None where no method returns it."""
        state = self.first(stream)
        for entry in reversed(self.entries):
            for index, tensor in enumerate(tensors_of(entry.result)):
                dim = _beginning(tensor, state)
                if dim is not None:
                    return Place(entry.key, index, dim, tensor.dtype)
        return None

    def costly(self) -> list[Key]:
        """The methods that run a component, as text encoders and image conditions do."""
        return [entry.key for entry in self.entries if entry.parts]


def step_argument(view: View) -> str:
    """Name of the argument that holds the number of steps.

    Raises:
        ValueError: there is none.
    """
    for name in STEP_ARGUMENTS:
        if view.takes(name):
            return name
    raise ValueError(f"{view.name} has no number of steps; it is no pipeline that denoises step by step")


def watch(view: View, scheduler: Any, arguments: Mapping[str, Any]) -> Run:
    """Let a pipeline make a few steps as it does, and write down what it calls.

    Args:
        view: The pipeline.
        scheduler: Its own scheduler.
        arguments: Those of its call, without the number of steps.
    Raises:
        ValueError: it makes no steps, or cannot be called with these arguments.
    """
    seen: set[str] = set()
    active: list[set[str]] = []
    networks: dict[str, None] = {}
    worked: list[bool] = []
    entries: list[Entry] = []
    late: set[str] = set()

    def see(name: str) -> None:
        if view.is_network(name) and not active:
            view.send_home()
        seen.add(name)
        for parts in active:
            parts.add(name)

    def before_step(k: int) -> None:
        worked.append(bool(seen))
        networks.update(dict.fromkeys(sorted(seen) if k else ()))
        seen.clear()

    diary = Diary(before_step)

    def via(name: str, count: int, call: Callable[[], Any]) -> Any:
        if diary.steps:
            late.add(name)
            return call()
        entry = Entry((name, count))
        active.append(entry.parts)
        try:
            result = call()
        finally:
            active.pop()
        entry.result = mapped(result, torch.clone)
        entries.append(entry)
        return result

    with torch.no_grad(), view.seeing(see):
        try:
            own = watched(scheduler, diary)
            view.run(own, {**arguments, step_argument(view): STEPS}, view.own_methods(), via)
        except Exception as error:
            raise ValueError(_explain(view, error, bool(diary.steps))) from error
    if not diary.steps or not networks:
        raise ValueError(f"{view.name} calls no denoising network between steps of its scheduler")
    streams = 1
    while streams < len(worked) and not worked[streams]:
        streams += 1
    return Run(diary, streams, list(networks), [entry for entry in entries if entry.key[0] not in late])


def related(names: Sequence[str], parts: Mapping[str, Any]) -> list[str]:
    """Networks that were seen, and their further experts, which may take over at levels that no step had."""
    kinds = {re.sub(r"_\d+$", "", name) for name in names}
    return [name for name in parts if re.sub(r"_\d+$", "", name) in kinds]


def _beginning(tensor: Tensor, state: Tensor) -> int | None:
    """The dimension along which a tensor begins with a state: the last one where they are equal; None for no such."""
    if tensor.ndim != state.ndim or not tensor.is_floating_point():
        return None
    unequal = [d for d in range(1, state.ndim) if tensor.shape[d] != state.shape[d]]
    if tensor.shape[0] != state.shape[0] or len(unequal) > 1:
        return None
    dim = unequal[0] if unequal else state.ndim - 1
    if tensor.shape[dim] < state.shape[dim]:
        return None
    return dim if torch.equal(tensor.narrow(dim, 0, state.shape[dim]).to(state.dtype), state) else None


def _explain(view: View, error: Exception, began: bool) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if began:
        return f"{view.name} fails in its own sampling ({reason})"
    return f"{view.name} cannot be called with these arguments ({reason}); give what its call needs"
