"""Samples that fits work on: parts of a batch, on which device, and the error of a student on all of them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.fits.report import Meter
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.references.batch import Batch
from solverdistill.support.processes import share, total

# What making a table of params raises that are no solver: levels that coincide, numbers that are not finite.
NO_SOLVER = (ValueError, torch.linalg.LinAlgError)


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """End points, noise and conditions of a batch on the network's device."""
    cond = None if batch.cond is None else pytree.tree_map(lambda leaf: leaf.to(device), batch.cond)
    return Batch(batch.noise.to(device), batch.targets[:0].to(device), batch.end.to(device), cond)


def take(batch: Batch, index: Tensor) -> Batch:
    """Noise, end points and condition of some samples."""
    cond = None if batch.cond is None else pytree.tree_map(lambda leaf: leaf[index], batch.cond)
    return Batch(batch.noise[index], batch.targets[:, :0], batch.end[index], cond)


def take_solved(batch: Batch, index: Tensor) -> Batch:
    """The same with the whole reference trajectories, where the batch has them."""
    reference = None if batch.reference is None else batch.reference.take(index)
    return take(batch, index)._replace(reference=reference)


def play_batches(program: SolverProgram, denoiser: Any, batch: Batch, batch_size: int) -> Tensor:
    """Samples of a program from the noise of a batch, `batch_size` at a time. Shape: (batch, ...)."""
    parts = (take(batch, index) for index in torch.arange(batch.noise.shape[0]).split(batch_size))
    return torch.cat([sample(program, denoiser, part.noise, part.cond) for part in parts])


def mean_error(program: SolverProgram, denoiser: Any, batch: Batch, batch_size: int, meter: Meter) -> float:
    """Mean RMSE of the end points of a batch that all processes have and share; infinite where it is not finite."""
    samples = batch.noise.shape[0]
    own = take(batch, share(torch.arange(samples)))
    with meter.measure("forward", own.noise.shape[0] * program.nfe):
        ends = play_batches(program, denoiser, own, batch_size) if len(own.noise) else own.end
        error = float(total(rmse(ends, own.end).double().sum().cpu())) / samples
    return error if error < float("inf") else float("inf")


def error_of(make: Callable[[], SolverProgram], denoiser: Any, batch: Batch, batch_size: int, meter: Meter) -> float:
    """`mean_error` of the program that `make` gives; infinite where the params that it is made of are no solver."""
    try:
        program = make()
    except NO_SOLVER:
        return float("inf")
    return mean_error(program, denoiser, batch, batch_size, meter)
