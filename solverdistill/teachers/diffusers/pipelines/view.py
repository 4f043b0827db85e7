"""A second view of a pipeline, on the same components, with a scheduler and methods of its own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

Intercept = Callable[[str, int, Callable[[], Any]], Any]  # name of a method, which call of it, and the call itself
TIMES = ("timestep", "timesteps", "timestep_cond", "t", "time", "sigma")
NETWORKS = ("transformer", "unet", "prior", "denoiser", "dit")


@dataclass(frozen=True, eq=False)
class Told:
    """The time of an evaluation, for networks whose pipeline builds a new tensor of its value.

    Such a tensor has lost the gradient in the noise level. It is recognised by its value, and given the gradient back.

    Args:
        time: Entry of `timesteps`, with a gradient. Shape: ().
        horizon: Number of training timesteps.
    """

    time: Tensor
    horizon: float

    @staticmethod
    def of(time: Tensor, horizon: float) -> Told | None:
        """None where there is no gradient to lose."""
        return Told(time, horizon) if time.requires_grad and torch.is_grad_enabled() else None

    def tie(self, value: Any) -> Any:
        """A tensor of times with the gradient of the time; anything else as it is."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.requires_grad or value.ndim > 2:
            return value
        own, lost = self.time.detach().double(), (self.time - self.time.detach()).to(value.device)
        first = value.detach().flatten()[:1].double().to(own.device)
        if not value.numel() or bool((value != value.flatten()[0]).any()):
            return value
        for factor, start in ((1.0, 0.0), (1 / self.horizon, 0.0), (-1 / self.horizon, 1.0), (-1.0, self.horizon)):
            wanted = start + factor * own
            if abs(float(first - wanted)) <= 4 * torch.finfo(value.dtype).eps * max(abs(float(wanted)), abs(start)):
                return value + (factor * lost).to(value.dtype)
        return value


class View:
    """A pipeline's call without `torch.no_grad`, from which its own methods can be kept away.

    The pipeline itself keeps its scheduler, its methods and its settings.

    Args:
        pipe: The pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        kind = type(pipe)
        self.pipe, self.name = copy.copy(pipe), kind.__name__
        offloaded = any(hasattr(part, "_hf_hook") for part in pipe.components.values())
        if not offloaded:  # what is offloaded knows itself where it runs
            self.pipe.__class__ = type(kind.__name__, (kind,), {"_execution_device": property(lambda own: self.device)})
        self._offloaded = offloaded
        vars(self.pipe)["progress_bar"] = _NoBar
        self.parts: dict[str, nn.Module] = {
            name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)
        }
        self.networks: dict[str, nn.Module] = {}
        self._call = inspect.unwrap(kind.__call__)
        self.parameters = inspect.signature(self._call).parameters
        self._own_methods = _own_methods(kind)
        self._depth = 0
        self._homes: dict[str, torch.device] = {}

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs: the device of its networks, or of whatever has weights before these are known."""
        if self._offloaded:
            return self.pipe._execution_device
        first = [part for name, part in self.parts.items() if self.is_network(name)]
        return next((where for where in map(_device_of, (*first, *self.parts.values())) if where), torch.device("cpu"))

    def is_network(self, name: str) -> bool:
        """Whether a component denoises; by its name, before that is known."""
        return name in self.networks or (not self.networks and name.startswith(NETWORKS))

    def fetch(self, name: str) -> None:
        """Bring a component to where the networks are, as long as it works; one that is offloaded moves itself."""
        part, here = self.parts[name], self.device
        where = _device_of(part)
        if where in (None, here) or self.is_network(name) or hasattr(part, "_hf_hook"):
            return
        self._homes.setdefault(name, where)
        part.to(here)

    def send_home(self) -> None:
        """Bring all components back to where they were fetched from."""
        for name, where in self._homes.items():
            self.parts[name].to(where)
        self._homes.clear()

    def takes(self, argument: str) -> bool:
        """Whether the call has an argument."""
        return argument in self.parameters

    def run(self, scheduler: Any, arguments: Mapping[str, Any], methods: Sequence[str], via: Intercept) -> Any:
        """Run the call.

        Args:
            scheduler: Takes the place of the pipeline's.
            arguments: Those of the call; a generator of the call's own is added, so that no other is drawn from.
            methods: Names of the methods that are called through `via`.
            via: Calls a method, or does not; methods that are called by others of the pipeline's run as they are.
        """
        own, counts = vars(self.pipe), dict.fromkeys(methods, 0)
        kept = {name: own[name] for name in (*methods, "scheduler") if name in own}
        own["scheduler"], self._depth = scheduler, 0
        for name in methods:
            own[name] = self._through(name, counts, via)
        if self.takes("generator"):
            arguments = {"generator": torch.Generator().manual_seed(0), **arguments}
        try:
            return self._call(self.pipe, **arguments)
        finally:
            for name in methods:
                del own[name]
            own.update(kept)

    def own_methods(self) -> tuple[str, ...]:
        """Names of the methods that the pipeline's own class brings along."""
        return self._own_methods

    @property
    def inside(self) -> bool:
        """Whether a method is running that is called through `via`."""
        return self._depth > 0

    def _through(self, name: str, counts: dict[str, int], via: Intercept) -> Callable[..., Any]:
        method = getattr(self.pipe, name)

        def call(*positional: Any, **named: Any) -> Any:
            if self._depth:
                return method(*positional, **named)
            count, counts[name] = counts[name], counts[name] + 1
            self._depth += 1
            try:
                return via(name, count, lambda: method(*positional, **named))
            finally:
                self._depth -= 1

        return call

    @contextmanager
    def seeing(self, see: Callable[[str], None]) -> Iterator[None]:
        """Call a function with the name of the component whenever one of its modules runs, and fetch it before."""
        owner = {id(module): name for name, part in self.parts.items() for module in part.modules()}

        def hook(module: nn.Module, inputs: Any) -> None:
            name = owner.get(id(module))
            if name is not None:
                self.fetch(name)
                see(name)

        handle = register_module_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()
            self.send_home()

    @contextmanager
    def counting(self, told: Told | None = None) -> Iterator[list[int]]:
        """The numbers of rows that the denoising networks were called with, one per call.

        Args:
            told: A time with a gradient, to which times are tied that the pipeline made anew.
        """
        rows: list[int] = []

        def count(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            rows.append(_rows(positional, named))

        def tie(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
            assert told is not None
            tied = {name: told.tie(value) if name in TIMES else value for name, value in named.items()}
            return tuple(told.tie(value) for value in positional), tied

        counted = [part for name, part in self.networks.items() if not name.startswith("controlnet")]
        handles = [part.register_forward_pre_hook(count, with_kwargs=True) for part in counted]
        if told is not None:
            handles += [part.register_forward_pre_hook(tie, with_kwargs=True) for part in self.networks.values()]
        try:
            yield rows
        finally:
            for handle in handles:
                handle.remove()


class _NoBar:
    """Takes the place of a progress bar, whose making takes as long as a small network."""

    def __init__(self, iterable: Any = None, total: Any = None) -> None:
        self.iterable = iterable

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *reason: Any) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *positional, **named: None


def _own_methods(kind: type) -> tuple[str, ...]:
    """Methods of a pipeline's class and of those it inherits from, without the library's base classes."""
    names: dict[str, None] = {}
    for base in kind.__mro__:
        where = base.__module__
        of_library = where.startswith("diffusers.") and "pipelines" not in where
        if base is object or of_library or where.endswith("pipeline_utils"):
            continue
        for name, value in vars(base).items():
            if inspect.isfunction(value) and not name.startswith("__") and name != "check_inputs":
                names[name] = None
    return tuple(names)


def _device_of(part: nn.Module) -> torch.device | None:
    """Where a component's numbers are; None for one without."""
    return next((value.device for value in chain(part.parameters(), part.buffers())), None)


def _rows(positional: tuple[Any, ...], named: dict[str, Any]) -> int:
    """Rows of a network's batch: those of its first tensor, or the length of its first list of tensors."""
    values = [named[name] for name in ("hidden_states", "sample", "x") if name in named]
    for value in (*values, *positional, *named.values()):
        if isinstance(value, torch.Tensor) and value.ndim > 1:
            return value.shape[0]
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
            return len(value)
    return 1
