"""Any solver file as a sampler function of k-diffusion, which is also what ComfyUI plays.

The convention: ``sample_x(model, x, sigmas, extra_args, callback, disable, **options)``, where
``model(x, sigma, **extra_args)`` returns the denoised image of a batch, `sigma` of shape (batch,); `x` comes as the
state at ``sigmas[0]``; `callback` gets ``{x, i, sigma, sigma_hat, denoised}`` once per step.

The sigmas are the levels of the first state and of the state after every step, from the file (`sigmas_of`); a solver's
numbers belong to them, so foreign ones are refused. Those of its last steps alone go on from a noised image
(`sigmas_of(solver, denoise=0.5)`). The last one is the level of the returned state: 0 where the solver goes to clean
data, else as small as its grid ends.

ComfyUI's inpainting is a model that mixes the picture to be kept into its input and its output. A solver's last row
need not leave that part alone (it may hold noise, and its weights need not sum to one), so it is put right at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solverdistill.consumers.state_scales import Scale, Solver, convention_of, sigmas_of
from solverdistill.programs.playing import Evaluation, sample
from solverdistill.programs.program import SolverProgram

__all__ = ["convention_of", "kind_of_sigmas", "sample_learned", "sigmas_of"]


def kind_of_sigmas(solver: Solver, sigmas: Tensor) -> str:
    """The convention, "edm" or "flow", in which given sigmas are a solver's, or those of its last steps.

    Raises:
        ValueError: they are in neither.
    """
    return "flow" if Scale.matching(solver, sigmas)[1].flow else "edm"


def sample_learned(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    solver: Solver,
    parallel: bool | None = None,
) -> Tensor:
    """Play a solver on a denoiser of k-diffusion.

    Args:
        model: ``model(x, sigma, **extra_args)`` -> denoised.
        x: State at ``sigmas[0]``: sigma times unit noise, or as the library scales it. Shape: (batch, ...).
        sigmas: Those of `sigmas_of`, in either convention, which they decide.
        extra_args: Arguments of every call of the model. Where evaluations run as one batch, tensors with first
            dimension `batch` are repeated; what lies within other containers is passed as it is.
        callback: Called once per step, with the state before it and the first denoised image of the step.
        disable: Show no progress bar; None shows one in a terminal. It needs tqdm.
        solver: A program, or a file as `read_solver` gives it.
        parallel: Give evaluations that do not depend on each other to the model as one batch. None and True do so
            unless there is a `denoise_mask`, whose images have the size of the batch.
    Returns:
        The state at ``sigmas[-1]``, in the dtype of x. Shape: as x.
    Raises:
        ValueError: the sigmas are not those of the solver.
    """
    program, scale = Scale.matching(solver, sigmas)
    program, arguments = program.detach(), dict(extra_args or {})
    kept = _Kept.of(model, arguments, program, scale)
    parallel = parallel is not False and kept is None
    noise = x.to(torch.promote_types(x.dtype, torch.float32)) / scale.start.noise
    network = _Network(model, arguments, scale.flow, len(x), x.dtype)
    with _progress(len(scale.sigmas) - 1, disable) as advance:
        steps = _Steps(program, scale, noise, x.dtype, callback, advance)
        last = sample(program, network, noise, callback=steps, stage_batch=None if parallel else len(x))
    if kept is not None:
        last = kept.put_back(last, noise, program)
    return (last / scale.factor(*program.level[-1].tolist())).to(x.dtype)


@dataclass(frozen=True)
class _Kept:
    """What a noise mask keeps of a picture.

    Args:
        mask: 1 where the picture is made anew, 0 where it is kept, as of the last evaluation.
        latent: The picture, in data units.
    """

    mask: Tensor
    latent: Tensor

    @staticmethod
    def of(model: Any, arguments: Mapping[str, Any], program: SolverProgram, scale: Scale) -> _Kept | None:
        """The mask among a call's arguments and the picture that the model keeps; None for no mask.

        Raises:
            ValueError: there is a mask, and the model has no picture.
        """
        mask = arguments.get("denoise_mask")
        if mask is None:
            return None
        latent = getattr(model, "latent_image", None)
        if latent is None:
            raise ValueError("a denoise_mask was given, but the model has no latent_image to keep, as ComfyUI's has")
        change = (arguments.get("model_options") or {}).get("denoise_mask_function")
        if change is not None:  # differential diffusion: masks that depend on the noise level
            alpha, sigma = float(program.alpha[-1]), float(program.sigma[-1])
            told = latent.new_full((len(latent),), sigma / scale.factor(alpha, sigma))
            options = {"model": getattr(model, "inner_model", model), "sigmas": getattr(model, "sigmas", None)}
            mask = change(told, mask, extra_options=options)
        return _Kept(mask, latent)

    def put_back(self, last: Tensor, noise: Tensor, program: SolverProgram) -> Tensor:
        """The last row with alpha times the picture in place of what it made of picture and noise where it is kept.

        Every denoised image is m net + (1 - m) latent, so the row holds (1 - m) (sum B latent + A noise) too much.
        """
        alpha, own = float(program.level[-1, 0]), float(program.B[-1].sum())
        mask, latent = self.mask.to(last.dtype), self.latent.to(last.dtype)
        change = latent * (alpha - own) - noise * float(program.A[-1, 0])
        return torch.where(mask == 0, latent * alpha, last + (1 - mask) * change)


class _Network:
    """The model as a denoiser of this package."""

    def __init__(
        self, model: Callable[..., Tensor], arguments: dict[str, Any], flow: bool, batch: int, dtype: torch.dtype
    ) -> None:
        self.model, self.arguments, self.flow, self.batch, self.dtype = model, arguments, flow, batch, dtype

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        scale = alpha + sigma if self.flow else alpha
        points = len(x) // self.batch
        state = (x / scale.view(-1, *[1] * (x.ndim - 1))).to(self.dtype)
        return self.model(state, sigma / scale, **self._repeated(points))

    def _repeated(self, points: int) -> dict[str, Any]:
        if points == 1:
            return self.arguments
        return {name: self._repeat(value, points) for name, value in self.arguments.items()}

    def _repeat(self, value: Any, points: int) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == self.batch:
            return value.repeat(points, *[1] * (value.ndim - 1))
        return value


@dataclass
class _Steps:
    """Tells the callback about every step as soon as its end is known, with the first denoised image of the step.

    Every step leads to a readout; it is complete when all evaluations that the readout uses are. A step without one of
    its own is told with the newest denoised image, at the beginning together with the first step that has one.
    """

    program: SolverProgram
    scale: Scale
    noise: Tensor
    dtype: torch.dtype
    callback: Callable[[dict[str, Any]], None] | None
    advance: Callable[[], None]
    denoised: dict[int, Tensor] = field(default_factory=dict)
    told: int = 0

    def __call__(self, evaluation: Evaluation) -> None:
        self.denoised[evaluation.index] = evaluation.denoised
        while self.told < len(self.scale.rows) and self._complete(self.scale.rows[self.told]):
            if self.callback is not None:
                sigma = self.noise.new_tensor(self.scale.sigmas[self.told])
                step = {"x": self._state(self.told).to(self.dtype), "i": self.told, "sigma": sigma, "sigma_hat": sigma}
                self.callback({**step, "denoised": self._denoised_of(self.told).to(self.dtype)})
            self.told += 1
            self.advance()

    def _denoised_of(self, i: int) -> Tensor:
        """Output of the first evaluation that step i is the first to use, or the newest one."""
        earlier = {k for row in self.scale.rows[:i] for k in self._used(row)}
        own = [k for k in self._used(self.scale.rows[i]) if k not in earlier]
        return self.denoised[own[0] if own else max(self.denoised)]

    def _used(self, row: int) -> list[int]:
        """Evaluations that a row uses."""
        return self.program.mask[row, self.program.inputs :].nonzero().flatten().tolist()

    def _complete(self, row: int) -> bool:
        return all(k in self.denoised for k in self._used(row))

    def _state(self, i: int) -> Tensor:
        """State before step i, in the library's scale."""
        if i == 0:
            return self.noise * self.scale.start.noise
        row = self.scale.rows[i - 1]
        state = self.noise * float(self.program.A[row, 0])
        for k in self._used(row):
            state = state + self.denoised[k].to(self.noise.dtype) * float(self.program.B[row, k])
        return state / self.scale.factor(*self.program.level[row].tolist())


@contextmanager
def _progress(steps: int, disable: bool | None) -> Iterator[Callable[[], None]]:
    """A bar of tqdm where there is one, as k-diffusion's own samplers show it."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda: None
        return
    with tqdm(total=steps, disable=disable) as bar:

        def advance() -> None:
            bar.update()

        yield advance
