"""One evaluation of a pipeline's network, with all that does not change between evaluations made once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solverdistill.teachers.diffusers.pipelines.joining import (
    Join,
    Unexplained,
    learn,
    mapped,
    signature,
    tensors_of,
)
from solverdistill.teachers.diffusers.pipelines.schedulers import Answered, Question, one_step
from solverdistill.teachers.diffusers.pipelines.view import Told, View
from solverdistill.teachers.diffusers.pipelines.watching import STEPS, Key, Run, related, step_argument

log = logging.getLogger(__name__)
KEPT = 8  # batches whose conditions stay joined
Record = dict[Key, Any]


class Replay:
    """A pipeline's call for one evaluation of its network.

    Methods that ran a component in a first run (text encoders, image conditions) are not called again: what they
    returned for every prompt is kept and joined for the batch at hand. The state takes the place of the noise that the
    pipeline would draw.

    Args:
        view: The pipeline.
        scheduler: Its own scheduler.
        run: A few steps of its own.
        arguments: Arguments of the call that all samples share.
        prompts: Arguments of the call that stand for one prompt each.
    Raises:
        ValueError: the pipeline takes no first state.
    """

    def __init__(
        self,
        view: View,
        scheduler: Any,
        run: Run,
        arguments: Mapping[str, Any],
        prompts: Sequence[Mapping[str, Any]],
    ) -> None:
        self.view, self.shared, self.prompts = view, dict(arguments), list(prompts)
        self.question = Question(streams=run.streams)
        self.scheduler, self.steps = one_step(scheduler, self.question), step_argument(view)
        view.networks = {name: view.parts[name] for name in related(run.networks, view.parts)}
        self.firsts = [run.first(stream) for stream in range(run.streams)]
        self.places = [run.find_state(stream) for stream in range(run.streams)]
        fine = any(value.dtype == torch.float64 for part in view.networks.values() for value in part.parameters())
        self.dtypes = [
            torch.float64 if fine else state.dtype if place is None else place.dtype
            for state, place in zip(self.firsts, self.places, strict=True)
        ]
        if any(place is None for place in self.places) and not (run.streams == 1 and view.takes("latents")):
            raise ValueError(f"{view.name} draws its first noise itself and takes none as latents")
        self.keys: list[Key] = list(dict.fromkeys([*run.costly(), *(place.key for place in self.places if place)]))
        self.methods = tuple(dict.fromkeys(name for name, _ in self.keys))
        self.records: dict[int, Record] = {}
        self._kinds: dict[int, str] = {}
        self._begun: Record = {}
        self.rules: dict[Key, Join] | None = None
        self.horizon = float(scheduler.config.get("num_train_timesteps", 1000))
        self._joined: OrderedDict[tuple[Any, ...], Record] = OrderedDict()

    def arguments(self, rows: Sequence[int]) -> dict[str, Any]:
        """Arguments of the call for a batch of prompts.

        Args:
            rows: Numbers of the prompts.
        """
        here, call = self.view.device, call_arguments(self.view, self.shared, self.prompts, rows)
        return {name: mapped(v, lambda t: t.to(here)) if tensors_of(v) else v for name, v in call.items()}

    def learn_batches(self) -> None:
        """Find how the results of a batch are made of those of its samples; without a rule, samples go one by one."""
        try:
            one = self.record(0)
            with self.view.seeing(self._see):
                two = self._run_for_record([0, 0])
            self.rules = {key: learn(one[key], two[key]) for key in self.keys}
        except (Unexplained, ValueError) as reason:
            log.info("%s evaluates sample by sample: %s", self.view.name, reason)
            self.rules = None

    def record(self, row: int) -> Record:
        """What the kept methods returned for one prompt, made when it is first asked for."""
        if row not in self.records:
            with self.view.seeing(self._see):
                self.records[row] = self._run_for_record([row])
        return self.records[row]

    def remember(self) -> None:
        """Make the records of all prompts, fetching text encoders and the like once."""
        missing = [row for row in range(len(self.prompts)) if row not in self.records]
        if missing:
            log.info("%s prepares %d prompts", self.view.name, len(missing))
            with self.view.seeing(self._see):
                for row in missing:
                    self.records[row] = self._run_for_record([row])

    def groups(self, rows: Sequence[int]) -> list[list[int]]:
        """Positions in a batch of prompts that can be evaluated together."""
        if self.rules is None:
            return [[position] for position in range(len(rows))]
        found: dict[str, list[int]] = {}
        for position, row in enumerate(rows):
            if row not in self._kinds:
                record, prompt = self.record(row), self.prompts[row]
                made = [signature(record[key]) for key in self.keys]
                given = [(name, None if isinstance(value, str) else signature(value)) for name, value in prompt.items()]
                self._kinds[row] = repr((made, given))
            found.setdefault(self._kinds[row], []).append(position)
        return list(found.values())

    def ask(
        self, rows: Sequence[int], states: Sequence[Tensor], time: Tensor, sigma: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """One evaluation.

        Args:
            rows: Numbers of the prompts of the batch, which `groups` put together.
            states: The state of every stream, in the network's own scale. Shape: (batch, ...).
            time: Entry of `timesteps`. Shape: ().
            sigma: Noise level as the scheduler has it. Shape: ().
        Returns:
            The network's output and its input of every stream, and how many rows the networks were called with.
        """
        asked = self.question
        asked.time, asked.sigma, asked.answers, asked.ending = time, sigma, [], None
        with self.view.counting(Told.of(time, self.horizon)) as counted:
            self._play(rows, states, {})
        return asked.answers, sum(counted)

    def finish(self, row: int, states: Sequence[Tensor], output_type: str) -> Any:
        """What the pipeline returns once its loop has ended at these states, of one sample."""
        asked = self.question
        asked.answers, asked.ending = [], states
        try:
            with self.view.seeing(lambda name: None):
                return self._play([row], [torch.zeros_like(state) for state in states], {"output_type": output_type})
        finally:
            asked.ending = None

    def _play(self, rows: Sequence[int], states: Sequence[Tensor], changed: Mapping[str, Any]) -> Any:
        """Run the call with what is kept, and with the states in place of noise."""
        record = self._joined_record(rows)
        given = [state.to(dtype).clone() for state, dtype in zip(states, self.dtypes, strict=True)]
        call = {**self.arguments(rows), self.steps: STEPS, **changed}
        if self.places == [None]:
            call["latents"] = given[0]

        def via(name: str, count: int, call: Callable[[], Any]) -> Any:
            key = name, count
            if key not in record:
                return call()
            result = record[key]
            for place, state in zip(self.places, given, strict=True):
                if place is not None and place.key == key:
                    result = _replaced(result, place.index, partial(_begun_with, state=state, dim=place.dim))
            return result

        try:
            return self.view.run(self.scheduler, call, self.methods, via)
        except Answered:
            return None

    def _joined_record(self, rows: Sequence[int]) -> Record:
        device = self.view.device
        known = (*rows, device)
        if known not in self._joined:
            parts = [self.record(row) for row in rows]
            if len(rows) > 1:
                assert self.rules is not None
                whole = {key: self.rules[key]([part[key] for part in parts]) for key in self.keys}
            else:
                whole = parts[0]
            self._joined[known] = {key: mapped(value, lambda t: t.to(device)) for key, value in whole.items()}
            while len(self._joined) > KEPT:
                self._joined.popitem(last=False)
        self._joined.move_to_end(known)
        return self._joined[known]

    @torch.no_grad()
    def _run_for_record(self, rows: Sequence[int]) -> Record:
        """Run the call up to its network, and keep what its methods return.

        Raises:
            ValueError: the call fails, or does not call them all.
        """
        record = self._begun = {}
        asked = self.question
        asked.time, asked.sigma, asked.answers = torch.tensor(500.0), torch.tensor(0.5), []

        def via(name: str, count: int, call: Callable[[], Any]) -> Any:
            result = call()
            if (name, count) in self.keys:
                record[name, count] = mapped(result, torch.clone)
            return result

        try:
            self.view.run(self.scheduler, {**self.arguments(rows), self.steps: STEPS}, self.methods, via)
        except Answered:
            pass
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{self.view.name} fails on {len(rows)} prompt(s) ({reason})") from error
        missing = [name for name, count in self.keys if (name, count) not in record]
        if missing:
            raise ValueError(f"{self.view.name} did not call {missing[0]} for every prompt")
        return {key: self._blank(key, value) for key, value in record.items()}

    def _see(self, name: str) -> None:
        """End a call whose record is complete before its network begins."""
        if name in self.view.networks and not self.view.inside and len(self._begun) == len(self.keys):
            raise Answered

    def _blank(self, key: Key, result: Any) -> Any:
        """A result without the noise that was drawn for it, which differs between samples."""
        for place, state in zip(self.places, self.firsts, strict=True):
            if place is not None and place.key == key:
                noise = state.new_zeros(1, *state.shape[1:])
                blank = partial(_begun_with, state=noise, dim=place.dim)
                result = _replaced(result, place.index, blank)
        return result


def call_arguments(
    view: View, shared: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]], rows: Sequence[int]
) -> dict[str, Any]:
    """Arguments of a pipeline's call for a batch of prompts; see `Replay`."""
    call: dict[str, Any] = {name: _repeated(name, value, len(rows)) for name, value in shared.items()}
    for name in prompts[rows[0]]:
        call[name] = _together([prompts[row][name] for row in rows])
    if view.takes("output_type"):
        call.setdefault("output_type", "latent")
    return call


def _replaced(value: Any, index: int, change: Callable[[Tensor], Tensor]) -> Any:
    """A result with one of its tensors changed."""
    count = iter(range(1 << 30))
    return mapped(value, lambda own: change(own) if next(count) == index else own)


def _begun_with(own: Tensor, state: Tensor, dim: int) -> Tensor:
    """A tensor with another beginning along a dimension: the state alone where that is all of it."""
    size = state.shape[dim]
    if own.shape[dim] == size:
        return state
    rest = own.narrow(dim, size, own.shape[dim] - size)
    return torch.cat([state.expand(len(own), *state.shape[1:]), rest.to(state.dtype)], dim)


def _repeated(name: str, value: Any, count: int) -> Any:
    """An argument that all samples share, for a batch: what holds one row holds one per sample."""
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == 1:
        return value.expand(count, *value.shape[1:]).contiguous() if count > 1 else value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Tensor):
        return value * count
    return [value] * count if isinstance(value, str) and "prompt" in name else value


def _together(values: Sequence[Any]) -> Any:
    """The arguments of several prompts as one."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if len(values) > 1 else first
    if isinstance(first, list):
        return [item for value in values for item in value]
    return list(values)
