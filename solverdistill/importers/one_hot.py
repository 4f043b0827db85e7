"""The table of somebody else's sampler, read off by running it on one-hot vectors in place of network outputs.

A deterministic sampler forms linear combinations of the noise and of the denoised images seen so far, and treats every
pixel alike. So run it on "images" whose pixel 0 is the noise and whose pixel j is the j-th denoised image: noise is
(1, 0, 0, ...), and the j-th answer of the network is 1 at pixel j and 0 elsewhere. What the sampler then asks the
network about, and what it returns, are the rows of its table.

Whether it is such a sampler is not believed but checked: noise and answers of zero must give zero (otherwise it draws
noise of its own), random images under a network that is not linear must be asked about at the same levels (otherwise
its steps adapt), and must come out as the table says (otherwise it clips, thresholds or mixes pixels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from solverdistill.importers.imported import MAX_STEPS
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram

Answer = Callable[[Tensor, float, float], Tensor]
Play = Callable[[Answer, Tensor], Tensor]
"""play(answer, noise) -> sample: runs the sampler on a network whose denoised image of x = alpha x_0 + sigma n, given
as float64, is answer(x, alpha, sigma)."""

FIRST_WIDTH = 64
ZERO = 1e-6  # size of a level's noise, relative to its signal, that is the rounding of single precision
SAME_LEVEL = 1e-6  # relative
LARGEST_DEVIATION = 1e-5  # relative to the largest pixel; schedulers of diffusers compute in single precision
SEED = 0


@dataclass
class Asked:
    """What a sampler asked the network about."""

    states: list[Tensor] = field(default_factory=list)
    levels: list[tuple[float, float]] = field(default_factory=list)


class TooNarrow(Exception):
    """There are more evaluations than pixels."""


def table_of(
    play: Play,
    name: str,
    levels: list[float] | None = None,
    start: tuple[float, float] | None = None,
    hint: str = "",
) -> tuple[SolverProgram, float]:
    """The table of a sampler, checked on random images.

    Its readouts are the states that the sampler asks the network about on its way down, where it asks for the last time
    at a level, and the sample.

    Args:
        play: Runs the sampler.
        name: What messages call it.
        levels: sigma / (alpha + sigma) of the states to be read out; None reads out at every level.
        start: (alpha, sigma) of the first state; None takes what the network is told first.
        hint: What may be at fault where it is no table, put into messages.
    Returns:
        The program, and the largest deviation of its sample from the sampler's own, relative to the largest pixel.
    Raises:
        ValueError: it is no table; the message says why.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        silent, end = _run(
            play, lambda x, _a, _s: torch.zeros_like(x), torch.zeros(1, 4, 1, 1, dtype=torch.float64), name
        )
        if any(bool((state != 0).any()) for state in (*silent.states, end)):
            raise ValueError(
                f"{name} is no table: from zeros it makes something else, so it draws noise of its own{hint}; switch "
                "that off, for many samplers by eta 0 or s_noise 0"
            )
        asked, rows = _one_hot(play, name)
        program = _program(asked, rows, levels, start)
        return program, _deviation(play, program, asked, name, hint)


def _run(play: Play, answer: Answer, noise: Tensor, name: str) -> tuple[Asked, Tensor]:
    asked = Asked()

    def ask(x: Tensor, alpha: float, sigma: float) -> Tensor:
        if len(asked.states) == MAX_STEPS:
            raise ValueError(f"{name} asks for more than {MAX_STEPS} evaluations")
        asked.states.append(x.to(torch.float64).clone())
        asked.levels.append((alpha, sigma))
        return answer(x, alpha, sigma)

    return asked, play(ask, noise).to(torch.float64)


def _one_hot(play: Play, name: str) -> tuple[Asked, Tensor]:
    """Levels and states of every evaluation, and the table's rows with that of the sample, in the sampler's scale."""
    width = FIRST_WIDTH
    while True:
        count = 0

        def answer(x: Tensor, _alpha: float, _sigma: float, width: int = width) -> Tensor:
            nonlocal count
            count += 1
            if count >= width:
                raise TooNarrow
            hot = torch.zeros_like(x)
            hot[0, count] = 1
            return hot

        noise = torch.zeros(1, width, 1, 1, dtype=torch.float64)
        noise[0, 0] = 1
        try:
            asked, last = _run(play, answer, noise, name)
        except TooNarrow:
            width *= 4
            continue
        rows = torch.stack([row.flatten()[: count + 1] for row in (*asked.states, last)])
        return asked, rows


def _program(
    asked: Asked, rows: Tensor, levels: list[float] | None, start: tuple[float, float] | None
) -> SolverProgram:
    """The program of the rows of all evaluations and of the sample."""
    nfe = len(asked.levels)
    if nfe == 0:
        raise ValueError("a sampler that never asks the network is no solver")
    told = torch.tensor(asked.levels, dtype=torch.float64)
    own = _own_levels(rows, told, asked.levels[0] if start is None else start)
    size = torch.hypot(*told.unbind(1))
    readouts = [*_readouts(asked.levels, own, levels), nfe]
    mask = rows != 0
    return SolverProgram(
        alpha=told[:, 0] / size,
        sigma=told[:, 1] / size,
        A=torch.cat([rows[:nfe, :1] / size[:, None], rows[readouts, :1]]),
        B=torch.cat([rows[:nfe, 1:] / size[:, None], rows[readouts, 1:]]),
        mask=torch.cat([mask[:nfe], mask[readouts]]),
        stages=_stages(mask[:nfe, 1:]),
        level=torch.cat([own[:nfe] / size[:, None], own[readouts]]),
    )


def _own_levels(rows: Tensor, told: Tensor, start: tuple[float, float]) -> Tensor:
    """(alpha, sigma) of the state of every row.

    Where all denoised images are one image, every consistent solver is exact: the state is alpha times it plus sigma
    times the noise. The first state is taken for one of its told level, and the rows say what becomes of both parts. A
    row of which they say nothing (a negative part) gets the level that the network is told, or clean data.
    """
    noise = rows[:, 0] / rows[0, 0]
    own = torch.stack([rows[:, 1:].sum(1) + noise * start[0], noise * start[1]], dim=1)
    own[own.abs() <= ZERO * own.abs().sum(1, keepdim=True)] = 0
    fallback = torch.cat([told, told.new_tensor([[1.0, 0.0]])])
    wrong = (own < 0).any(1, keepdim=True) | ~own.isfinite().all(1, keepdim=True) | (own.sum(1, keepdim=True) == 0)
    return torch.where(wrong, fallback, own)


def _readouts(told: list[tuple[float, float]], own: Tensor, levels: list[float] | None) -> list[int]:
    """Evaluations whose states are read out: the last one at its level, on the way down to the sample."""
    times = [sigma / (alpha + sigma) for alpha, sigma in told]
    own_times = (own[:, 1] / own.sum(1)).tolist()
    found: list[int] = []
    for k in range(1, len(told)):
        again = any(abs(later - times[k]) <= SAME_LEVEL * times[k] for later in times[k + 1 :])
        known = levels is None or any(abs(level - times[k]) <= SAME_LEVEL * times[k] for level in levels)
        above = own_times[found[-1]] if found else own_times[0]
        if known and not again and above > own_times[k] > own_times[-1]:
            found.append(k)
    return found


def _stages(history: Tensor) -> tuple[tuple[int, ...], ...]:
    """Evaluations that can run side by side, from which one uses which."""
    stage_of: list[int] = []
    for used in history.tolist():
        stage_of.append(1 + max((stage_of[j] for j, uses in enumerate(used[: len(stage_of)]) if uses), default=-1))
    return tuple(tuple(k for k, s in enumerate(stage_of) if s == stage) for stage in range(max(stage_of) + 1))


def _network(x: Tensor, alpha: Any, sigma: Any) -> Tensor:
    """A network for states of unit size: not linear, of large outputs, and of small slopes that spare rounding."""
    return 4 * torch.tanh(0.2 * x + alpha) + 0.2 * torch.sin(x - sigma)


def _deviation(play: Play, program: SolverProgram, asked: Asked, name: str, hint: str) -> float:
    """How far the table's sample is from the sampler's own on random images.

    Raises:
        ValueError: it is too far, or other levels were asked for.
    """
    noise = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))

    def answer(x: Tensor, alpha: float, sigma: float) -> Tensor:
        size = (alpha**2 + sigma**2) ** 0.5
        return _network(x / size, alpha / size, sigma / size)

    again, own = _run(play, answer, noise, name)
    if again.levels != asked.levels:
        raise ValueError(
            f"{name} is no table: it asks the network {len(asked.levels)} times in one run and {len(again.levels)} "
            "times, or at other levels, in another, so its steps adapt to the image"
        )
    played = sample(program, lambda x, a, s: _network(x, a.view(-1, 1, 1, 1), s.view(-1, 1, 1, 1)), noise)
    deviation = float((played - own).abs().max() / own.abs().max())
    if not deviation <= LARGEST_DEVIATION:
        raise ValueError(
            f"{name} is no table: on random images it differs from its own rows by {deviation:.2g} of the largest "
            f"pixel, so it is not linear in them or does not treat all pixels alike{hint}"
        )
    return deviation
