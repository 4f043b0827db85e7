"""Anybody's own network as a teacher: `model=callable model.target=my_package.load`.

What a network was trained on is stated in a few words: its noise schedule, what it predicts, and which number it is
given as time. States are in the units of the network's own data; nothing is rescaled or clamped.

Integer times. A network that looks its time up in a table (`discrete_times`) is given the integer index nearest to
that of the level it is asked at, distances being those of indices and the ends of the table included. The state's own
level stays what it is: only the number that the network is told is rounded, the conversion to the denoised estimate
uses the exact level. Rounding happens here, in the one call that training, reference solutions and inference share, so
that what is trained is what runs. A table look-up has no derivative in time, so none is invented by a straight-through
estimate: the gradient in the level is that of the conversion. `integer_times.snap_program` writes the same solver so
that every level it tells is one of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from solverdistill.denoisers.base import Teacher, per_sample
from solverdistill.noise.paths import EDM, Path
from solverdistill.teachers.own.conventions import Convention
from solverdistill.teachers.own.native_levels import NativeLevels
from solverdistill.teachers.own.readings import Reading, readings
from solverdistill.teachers.running import FrozenNetwork, Running


class OwnTeacher(Teacher):
    """A network with its convention and noise schedule as a denoiser of any (alpha, sigma).

    The network runs in the dtype of its own weights; the estimate is formed in float32, or in float64 for float64
    states. Of an output with twice the channels, as of networks that learn a variance, the first half is used.

    Args:
        network: A module, which is frozen; or a function that is frozen already, called with states in their own dtype.
        convention: What it expects and predicts.
        path: Its noise schedule.
        shape: Shape of one sample, without the batch.
        noise_range: Largest and smallest noise level to sample between, in the schedule's own unit.
        name: Name in files and tables.
        num_classes: Number of classes.
        running: How the network is run.
        origin: Target and arguments that made the network, part of the fingerprint.
    Raises:
        ValueError: the parts of the convention do not go together; or, when called, an eps network or one on the edm
            path is asked at alpha = 0, the output has another shape, or there is no label and no null label.
    """

    dtype: torch.dtype | None = None  # of a function that has no weights to tell it; None for that of the states

    def __init__(
        self,
        network: Callable[..., Any],
        convention: Convention,
        path: Path,
        shape: tuple[int, ...],
        noise_range: tuple[float, float],
        name: str = "own",
        num_classes: int = 0,
        running: Running | Mapping[str, Any] | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        convention.check(path, noise_range)
        super().__init__(name, shape, path, noise_range, convention.prediction, num_classes)
        self.convention, self.origin = convention, dict(origin or {})
        self.levels = NativeLevels(path)
        module = network if isinstance(network, nn.Module) else _Function(network)
        self.network = module if isinstance(module, FrozenNetwork) else FrozenNetwork(module, running)
        self.freeze()

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        self._refuse_pure_noise(alpha)
        dtype = torch.promote_types(x.dtype, torch.float32)
        a, s = alpha.double(), sigma.double()
        norm = per_sample(self.levels.norm(a, s), x).to(dtype)
        positional, keyword = self.arguments(x.to(dtype) / norm, self.times(a, s), cond)
        output = self.read(self.network(*positional, **keyword), x).to(dtype)
        P, Q = self.output_coefficients(a, s)
        return per_sample(P.to(dtype), x) * x + per_sample(Q.to(dtype), x) * output

    def times(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The number that the network is told at a level; int64 with discrete times. Shape: (batch,)."""
        c = self.convention
        if c.discrete_times:
            return self.levels.nearest(alpha, sigma) + int(c.time_offset)
        if c.time == "index":
            base = self.levels.index(alpha, sigma)
        elif c.time in ("schedule", "reversed"):
            base = self.levels.time(alpha, sigma)
            base = 1 - base if c.time == "reversed" else base
        else:
            base = sigma / alpha if c.time == "sigma" else torch.log(sigma) - torch.log(alpha)
            base = -base if c.time == "half_log_snr" else base
        return c.time_scale * base + c.time_offset

    def output_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """P and Q of denoised = P x + Q output at a level of any scale."""
        return self.levels.output(self.prediction, alpha, sigma, self.convention.time == "reversed")

    def variants(self) -> dict[str, OwnTeacher]:
        """The same network under every other convention that a user may have meant, named by what to set."""
        own = readings(self.convention, self.path, self.noise_range)
        return {other.name: self._with(other) for other in own}

    def null_cond(self, cond: Any) -> Any:
        if self.convention.condition == "index" and self.convention.null_label is None:
            raise ValueError(f"{self.name} was not trained without a class; name its index in model.null_label")
        return super().null_cond(cond)

    def description(self) -> dict[str, Any]:
        convention = {name: value for name, value in asdict(self.convention).items() if name != "prediction"}
        if not self.convention.time_shape:  # as in descriptions, and caches, from before there were others
            del convention["time_shape"]
        return {**super().description(), **convention, "call": list(self.convention.call), **self.origin}

    def _with(self, other: Reading) -> OwnTeacher:
        shape, ends = self.shape, other.noise_range
        made = OwnTeacher(self.network, other.convention, other.path, shape, ends, self.name, self.num_classes)
        made.dtype = self.dtype
        made.levels.to(self.levels.log_alphas.device)
        return made

    def arguments(self, x: Tensor, time: Tensor, cond: Any = None) -> tuple[list[Any], dict[str, Any]]:
        """What the network is called with, by position and by keyword, in the dtype of its own weights.

        Args:
            x: States on the network's schedule. Shape: (batch, ...).
            time: What `times` gives. Shape: (batch,).
            cond: Labels or None. Shape: (batch,).
        """
        own = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), self.dtype or x.dtype)
        if not self.convention.discrete_times:
            time = time.to(torch.promote_types(own, torch.float32))
        values: dict[str, Any] = {"x": x.to(own), "time": time.view(-1, *self.convention.time_shape)}
        positional, keyword = [], {}
        for argument in self.convention.call:
            key, _, what = argument.rpartition("=")
            value = self._label(cond, x, own) if what == "label" else values[what]
            if key:
                keyword[key] = value
            else:
                positional.append(value)
        return positional, keyword

    def _label(self, cond: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        label = torch.full((x.shape[0],), -1, device=x.device) if cond is None else cond
        if self.convention.condition == "onehot":
            return (label[:, None] == torch.arange(self.num_classes, device=x.device)).to(dtype)
        if self.convention.null_label is None:
            if cond is None:
                raise ValueError(f"{self.name} needs a class label; name the index of none in model.null_label")
            return label
        return torch.where(label < 0, self.convention.null_label, label)

    def read(self, output: Any, x: Tensor) -> Tensor:
        """The prediction inside of what a network returns: a tensor, a tuple of it, or an object with `sample`."""
        if isinstance(output, (tuple, list)):
            output = output[0]
        output = getattr(output, "sample", output)
        if isinstance(output, Tensor) and output.ndim == x.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]
        if not isinstance(output, Tensor) or output.shape != x.shape:
            what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"the network of {self.name} returns {what} for x of shape {tuple(x.shape)}")
        return output

    def _refuse_pure_noise(self, alpha: Tensor) -> None:
        """Only where looking at a number costs nothing: not on an accelerator, not inside of a function transform."""
        limited = self.prediction == "eps" or isinstance(self.path, EDM)
        if not limited or alpha.device.type != "cpu" or peek_interpreter_stack() is not None:
            return
        if bool((alpha == 0).any()):
            kind = "that predicts eps" if self.prediction == "eps" else "on the edm path"
            raise ValueError(f"{self.name}, a network {kind}, says nothing at alpha = 0; start at less noise")


class _Function(nn.Module):
    """A plain function as a module; one bound to a module brings that module's tensors along."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        owner = getattr(function, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.function(*inputs, **options)
