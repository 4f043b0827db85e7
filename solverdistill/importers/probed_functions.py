"""Sampling functions as k-diffusion and ComfyUI write them, and any other function of (model, x, sigmas)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from solverdistill.importers.one_hot import Answer, Play

CALLBACKS = "sampler_post_cfg_function"
Sampler = Callable[..., Tensor]


class StandIn:
    """What a sampling function takes for the model: answers with denoised images, and says how it is sampled.

    ComfyUI's functions look for `model_sampling` at several places of a model, all of which are this object.

    Args:
        answer: See `one_hot.Play`.
        flow: Whether sigma is the time of a flow model, whose states are (1 - sigma) x_0 + sigma n.
        model_sampling: ComfyUI's own object of the model; None refuses a function that asks for it.
    """

    def __init__(self, answer: Answer, flow: bool, model_sampling: Any = None) -> None:
        self._answer, self._flow, self._model_sampling = answer, flow, model_sampling

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        if (extra.get("model_options") or {}).get(CALLBACKS):
            raise ValueError(
                "this sampler steps by the unconditional prediction inside of the guidance (cfg_pp), which no table of "
                "denoised images has"
            )
        levels = {float(level) for level in torch.as_tensor(sigma).flatten()}
        if len(levels) != 1:
            raise ValueError(f"this sampler asks about {len(levels)} noise levels in one batch, and a table about one")
        level = levels.pop()
        return self._answer(x, 1 - level if self._flow else 1.0, level)

    @property
    def inner_model(self) -> StandIn:
        return self

    @property
    def model_patcher(self) -> StandIn:
        return self

    def get_model_object(self, name: str) -> Any:
        """The parts of a model that ComfyUI's functions ask for by name."""
        if name != "model_sampling":
            raise ValueError(f"this sampler asks the model for its {name!r}, and may not be one of noise levels alone")
        return self.model_sampling

    @property
    def model_sampling(self) -> Any:
        if self._model_sampling is None:
            raise ValueError(
                "this sampler asks the model how it is sampled; give model_sampling, in ComfyUI "
                'model.get_model_object("model_sampling")'
            )
        return self._model_sampling


def play_function(
    function: Sampler, sigmas: Tensor, flow: bool, model_sampling: Any, options: Mapping[str, Any]
) -> Play:
    """How a sampling function is run; its noise begins at the first of the sigmas.

    `extra_args` and `disable` are given where it takes them. Functions of (model, x, sigma_min, sigma_max, n) get the
    ends of the sigmas but for a last 0, and the number of steps.
    """
    names = set(inspect.signature(function).parameters)
    own: dict[str, Any] = {"extra_args": {"model_options": {}, "seed": 0}, "disable": True}
    given = {**{name: value for name, value in own.items() if name in names}, **options}
    inner = [float(level) for level in sigmas if level > 0]

    def play(answer: Answer, noise: Tensor) -> Tensor:
        model, x = StandIn(answer, flow, model_sampling), noise * sigmas[0]
        with _double_precision():
            if {"sigma_min", "sigma_max"} <= names:
                ends = {"sigma_min": inner[-1], "sigma_max": inner[0]}
                steps = {"n": len(sigmas) - 1} if "n" in names else {}
                return function(model, x, **ends, **steps, **given)
            return function(model, x, sigmas.clone(), **given)

    return play


@contextmanager
def _double_precision() -> Iterator[None]:
    """Numbers that a function makes of its own are double too: some refuse to mix them with states that are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_sigmas(sigmas: Sequence[float] | Tensor | None, flow: bool) -> Tensor:
    """Decreasing levels as float64.

    Raises:
        ValueError: there are none, they do not decrease, or a flow model's are no times.
    """
    if sigmas is None:
        raise ValueError("a sampling function needs sigmas, the decreasing noise levels that it is given")
    levels = torch.as_tensor(sigmas, dtype=torch.float64).flatten()
    if len(levels) < 2 or not bool((levels.diff() < 0).all()) or float(levels[-1]) < 0:
        raise ValueError(f"sigmas must be at least 2 decreasing numbers down to 0 or above, not {levels.tolist()}")
    if flow and float(levels[0]) > 1:
        raise ValueError(f"sigmas of a flow model are times from 1 to 0, and the first is {float(levels[0]):g}")
    return levels
