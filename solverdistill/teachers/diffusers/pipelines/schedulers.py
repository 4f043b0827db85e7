"""Schedulers of a pipeline's own class: one that asks a single question, and one that is watched at its work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Answered(Exception):
    """Ends a pipeline's call as soon as what was asked for is there."""


@dataclass(eq=False)
class Question:
    """What a pipeline's network is told in one evaluation, and what came of it.

    Args:
        time: Entry of `timesteps`. Shape: ().
        sigma: Noise level as the scheduler has it. Shape: ().
        streams: Calls of `step` that make one step: 2 where there is sound.
        ending: States to return as the result of the step, and so to finish the call with; None ends it.
        answers: The network's output and its input, once per stream.
    """

    time: Tensor = field(default_factory=lambda: torch.zeros(()))
    sigma: Tensor = field(default_factory=lambda: torch.zeros(()))
    streams: int = 1
    ending: Sequence[Tensor] | None = None
    answers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class OneStep:
    """What a scheduler does for one question; the methods of its own class that are left are those of no loop."""

    question: Question
    order = 1

    def __deepcopy__(self, memo: dict[int, Any]) -> OneStep:
        """Pipelines with sound copy their scheduler: the copy serves the same question."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    @property
    def init_noise_sigma(self) -> float:
        return 1.0

    @init_noise_sigma.setter
    def init_noise_sigma(self, value: Any) -> None:
        """States are given in the network's own scale, whatever that of the scheduler is."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
        **others: Any,
    ) -> None:
        asked = self.question
        own: Any = self
        own.timesteps = asked.time.reshape(1).to(device)
        own.sigmas = torch.stack([asked.sigma, torch.zeros_like(asked.sigma)])
        own.num_inference_steps, own._step_index, own._begin_index = 1, None, None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *others: Any, **options: Any) -> Any:
        asked = self.question
        asked.answers.append((_forwards(model_output, timestep, options), sample))
        if len(asked.answers) == asked.streams and asked.ending is None:
            raise Answered
        state = sample if asked.ending is None else asked.ending[len(asked.answers) - 1].to(sample.dtype)
        return (state,) if options.get("return_dict") is False else _Result(state)


def _forwards(output: Tensor, timestep: Any, options: dict[str, Any]) -> Tensor:
    """The output as every step takes it; where tokens have times of their own, `step` is given its negative.

    Raises:
        ValueError: these times are not all the same.
    """
    times = options.get("per_token_timesteps")
    if times is None:
        return output
    if not bool(torch.all(torch.as_tensor(times) == timestep)):
        raise ValueError("its tokens have noise levels of their own (a given image or video), and a solver has one")
    return -output


@dataclass
class _Result:
    prev_sample: Tensor


def one_step(scheduler: Any, question: Question) -> Any:
    """A scheduler of the same class and configuration that serves a question."""
    own = type(scheduler)
    made = type(f"OneStep{own.__name__}", (OneStep, own), {"__module__": own.__module__}).from_config(scheduler.config)
    made.question = question
    return made


@dataclass(frozen=True, eq=False)
class Step:
    """One call of `step`: what the scheduler was given and what it returned.

    Args:
        time: What the pipeline called the step.
        output: The network's output, guided.
        sample: The scheduler's state before the step.
        given: What the network was given of it, by `scale_model_input` where the pipeline calls that.
        after: The state after the step.
    """

    time: float
    output: Tensor
    sample: Tensor
    given: Tensor
    after: Tensor


@dataclass(eq=False)
class Diary:
    """What a watched scheduler was asked for.

    Args:
        before_step: Called before every step, with the number of the call.
        steps: Calls of `step`.
        sigmas: The noise levels that it chose.
        mu: The dynamic shift that it was given.
    """

    before_step: Callable[[int], None]
    steps: list[Step] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    mu: float | None = None
    _scaled: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Diary:
        return self


def watched(scheduler: Any, diary: Diary) -> Any:
    """A scheduler of the same class and configuration that works as it does, and whose work is written down."""
    own = type(scheduler)

    @functools.wraps(own.set_timesteps)
    def set_timesteps(self: Any, *positional: Any, **named: Any) -> None:
        own.set_timesteps(self, *positional, **named)
        levels = getattr(self, "sigmas", None)
        diary.sigmas = [] if levels is None else [float(value) for value in levels]
        diary.mu = None if named.get("mu") is None else float(named["mu"])

    @functools.wraps(own.scale_model_input if hasattr(own, "scale_model_input") else OneStep.scale_model_input)
    def scale_model_input(self: Any, sample: Tensor, *others: Any, **named: Any) -> Tensor:
        scaled = own.scale_model_input(self, sample, *others, **named) if hasattr(own, "scale_model_input") else sample
        diary._scaled = scaled
        return scaled

    @functools.wraps(own.step)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *others: Any, **named: Any) -> Any:
        diary.before_step(len(diary.steps))
        scaled, diary._scaled = diary._scaled, None
        before = sample.detach().clone()
        # pipelines with two guidance halves scale both in one call
        given = before if scaled is None else scaled[: len(before)].detach().clone()
        output = _forwards(model_output, timestep, named).detach().clone()
        result = own.step(self, model_output, timestep, sample, *others, **named)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        time = float(torch.as_tensor(timestep).flatten()[0])
        diary.steps.append(Step(time, output, before, given, after.detach().clone()))
        return result

    methods = {"set_timesteps": set_timesteps, "scale_model_input": scale_model_input, "step": step}
    kind = type(f"Watched{own.__name__}", (own,), {"__module__": own.__module__, **methods})
    return kind.from_config(scheduler.config)
