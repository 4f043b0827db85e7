"""Grids of the published samplers, as their code makes them."""

from __future__ import annotations

import math

import torch
from numpy import float32 as single
from numpy import sqrt

from solverdistill.importers.known_models import Model
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import EDM, make_path
from solverdistill.support.limits import shown


def published_levels(kind: str, count: int, model: Model, rho: float = 7.0) -> list[float]:
    """Noise levels of a schedule of the EPD, AMED, AdaSDE and DyWeight code, from the largest to the smallest.

    Args:
        kind: "polynomial", "logsnr", "time_uniform", "discrete" or "flowmatch", the published names.
        count: Number of levels, one more than steps.
        model: Gives the range, and the schedule or the shift where the kind needs one.
        rho: Exponent.
    Raises:
        ValueError: the kind is unknown or does not fit the model, or rho is no exponent.
    """
    if not 0 < rho < 100:
        raise ValueError(f"the exponent rho of a schedule must lie between 0 and 100, not {rho}")
    if kind == "flowmatch":
        if not model.flow:
            raise ValueError(f"schedule 'flowmatch' belongs to a flow model, which {model.title} is not; give model")
        return flow_levels(count, model)
    if model.flow:
        raise ValueError(f"schedule {shown(kind)} does not fit the flow model {model.title}; give the levels as grid")
    if kind == "time_uniform":
        return _time_uniform(count, model.start, model.end, rho)
    if kind == "discrete":
        if model.path["name"] != "discrete":
            raise ValueError(f"schedule 'discrete' needs a model with discrete times, which {model.title} is not")
        return Grid("discrete", count - 1, rho=rho, schedule=make_path(model.path)).values(EDM()).tolist()
    if kind not in ("polynomial", "logsnr"):
        raise ValueError(
            f"schedule {shown(kind)} is unknown; known: polynomial, logsnr, time_uniform, discrete, flowmatch"
        )
    return Grid(kind, count - 1, model.start, model.end, rho).values(EDM()).tolist()


def flow_levels(count: int, model: Model, last: float = 1e-3) -> list[float]:
    """Shifted flow times from 1, the grid that diffusers makes for `count` steps without its final 0."""
    shift = model.shift or 1.0
    # A scheduler with a fixed shift has shifted its smallest time once before it shifts the whole grid.
    last = last if model.mu is not None else shift * last / (1 + (shift - 1) * last)
    return shifted(torch.linspace(1.0, last, count, dtype=torch.float64).tolist(), model)


def shifted(times: list[float], model: Model) -> list[float]:
    """t -> shift t / (1 + (shift - 1) t) with the model's shift, or exp(mu)."""
    shift = math.exp(model.mu) if model.mu is not None else (model.shift or 1.0)
    return [shift * t / (1 + (shift - 1) * t) for t in times]


def _time_uniform(count: int, start: float, end: float, rho: float, eps: float = 1e-3) -> list[float]:
    """In single precision, as published: cancellation leaves the last level at 0.0020132 instead of 0.002.

    Every operation is the rounded one of double precision, which every machine does alike; its own logarithms and
    powers of single precision differ between two kinds of CPU by a unit in the last place.
    """
    half, one, two, base, share = (single(value) for value in (0.5, 1.0, 2.0, math.e, eps))
    low, high = (single(math.log(single(sigma) * single(sigma) + one)) for sigma in (end, start))
    slope = two * (low / share - high) / single(eps - 1)
    intercept = high - half * slope
    levels = []
    for i in range(count):
        u = single(i) / single(count - 1)
        t = single(math.pow(one + u * single(eps ** (1 / rho) - 1), single(rho)))
        power = single(math.pow(base, half * slope * (t * t) + intercept * t))
        levels.append(float(sqrt(power - one)))
    return levels
