"""Overhead of the executor: plays solvers with a denoiser that returns a tensor it already has.

What remains is the executor; its time is divided by the time of the same network calls made alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from solverdistill import Grid, families
from solverdistill.families.base import Family
from solverdistill.networks.preconditioning import Preconditioned
from solverdistill.networks.song_unet import SongUNet
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.support.files import write_atomically

from .machine import command, describe

TITLES = ["solver", "batch", "nfe", "depth", "network ms", "sample ms", "share %", "eager ms", "share %"]


class Result(NamedTuple):
    """Medians in seconds for one solver and batch."""

    solver: str
    batch: int
    nfe: int
    depth: int
    network: float
    sample: float
    eager: float

    def cells(self) -> list[str]:
        """The line of the table."""
        head = [self.solver, str(self.batch), str(self.nfe), str(self.depth), f"{1e3 * self.network:.0f}"]
        pairs = [(f"{1e3 * value:.2f}", f"{100 * value / self.network:.4f}") for value in (self.sample, self.eager)]
        return [*head, *pairs[0], *pairs[1]]


def make_network(device: torch.device) -> Preconditioned:
    """The EDM network of CIFAR-10 (DDPM++, 55.7 M parameters) with random weights, which cost what trained ones do."""
    torch.manual_seed(0)
    network = SongUNet(img_resolution=32, in_channels=3, out_channels=3, augment_dim=9)
    return Preconditioned(network, "edm").to(device).eval().requires_grad_(False)


def make_solvers() -> dict[str, Family]:
    """EPD of two points with an analytical first step (nfe 8, depth 5), and DPM-Solver++(3M) at nfe 10."""
    return {
        "EPD K=2 AFS": families.build("epd", Grid(steps=3), points=2, afs=True),
        "DPM++(3M)": families.build("dpmpp", Grid("logsnr", steps=10), order=3),
    }


def median_time(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median wall time [s] of `work` over `repeats` runs after one that is not counted."""
    times: list[float] = []
    for _ in range(repeats + 1):
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def network_time(
    network: Preconditioned, program: SolverProgram, noise: Tensor, repeats: int, known: dict[int, float]
) -> float:
    """Time [s] of a program's network calls: one of each stage, of the stage's size.

    On a GPU the calls run one after the other, as they do in `sample`. On a CPU a call of each size is timed alone and
    the medians are added; above batch 1 the call of one batch alone is timed, and multiplied by nfe.

    Args:
        network: The denoiser in EDM coordinates.
        program: Says which calls there are.
        noise: One batch.
        repeats: Runs of which the median is taken.
        known: Medians of calls by number of images, reused and added to.
    """

    def call(points: int) -> Tensor:
        x = noise.repeat(points, 1, 1, 1)
        return network(x, x.new_full((len(x),), 1.0))

    batch = len(noise)
    if noise.is_cuda:
        return median_time(lambda: [call(len(stage)) for stage in program.stages], repeats, noise.device)
    sizes = [len(stage) for stage in program.stages] if batch == 1 else [1] * program.nfe
    for points in set(sizes):
        if points * batch not in known:
            known[points * batch] = median_time(partial(call, points), repeats, noise.device)
    return sum(known[points * batch] for points in sizes)


def overhead(arguments: argparse.Namespace) -> list[Result]:
    """Measure the executor for every solver and batch."""
    device = torch.device(arguments.device)
    network = make_network(device)
    known: dict[int, float] = {}
    results: list[Result] = []
    for batch in arguments.batch:
        noise = torch.randn(batch, 3, 32, 32, device=device)
        for name, family in make_solvers().items():
            params = family.init(0)
            program = family.program(params).detach()
            denoiser = Cached(torch.randn(batch * max(map(len, program.stages)), 3, 32, 32, device=device))
            calls = network_time(network, program, noise, arguments.network_repeats, known)
            played = median_time(partial(sample, program, denoiser, noise), arguments.repeats, device)
            looped = median_time(partial(run_loop, family, denoiser, noise, params), arguments.repeats, device)
            results.append(Result(name, batch, program.nfe, program.depth, calls, played, looped))
    return results


class Cached:
    """A denoiser that costs nothing: it returns a tensor it already has."""

    def __init__(self, denoised: Tensor) -> None:
        self.denoised = denoised

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.denoised[: len(x)]


def run_loop(family: Family, denoiser: Cached, noise: Tensor, params: dict[str, Tensor]) -> Tensor:
    """Solve eagerly and return the sample."""
    for x in family.solve(denoiser, noise, params):
        noise = x
    return noise


def report(results: list[Result], arguments: argparse.Namespace) -> str:
    """The benchmark as Markdown."""
    device = torch.device(arguments.device)
    lines = ["| " + " | ".join(TITLES) + " |", "|---|" + "---:|" * (len(TITLES) - 1)]
    lines += ["| " + " | ".join(result.cells()) + " |" for result in results]
    worst = max(result.sample / result.network for result in results)
    calls = "the stages of the solver, one after the other"
    if device.type == "cpu":
        calls = (
            "a call of each size is timed alone and the medians are added; above batch 1,\n"
            "  where a call takes seconds, one call of one batch is timed and multiplied by nfe"
        )
    return "\n".join(
        [
            "# Overhead of the executor",
            "",
            "Time of `sample` with a denoiser that returns a tensor it already has, divided by the time of the",
            "network calls alone. The network is the DDPM++ of EDM's CIFAR-10 models (32x32 RGB, 55.7 M parameters)",
            "with random weights, in float32. *Eager* is the loop of `family.solve` with the same denoiser: it",
            "computes its coefficients as it goes and evaluates parallel points one by one.",
            "",
            *lines,
            "",
            f"Largest overhead of `sample`: {100 * worst:.3f} % (goal: at most 1 % on CPU).",
            "",
            f"- Command: `{command()}`",
            f"- Machine: {describe(device)}",
            f"- Medians over {arguments.repeats} runs of the solvers and {arguments.network_repeats} of the network,",
            "  after one run that is not counted",
            f"- Network calls: {calls}.",
            "",
        ]
    )


def show(results: list[Result], arguments: argparse.Namespace, console: Console) -> None:
    """Print the results."""
    table = Table(*TITLES, box=box.SIMPLE_HEAD, collapse_padding=True, title=describe(torch.device(arguments.device)))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        table.add_row(*result.cells())
    console.print(table)
    console.print(command(), highlight=False, soft_wrap=True)


@torch.inference_mode()
def run(arguments: argparse.Namespace) -> None:
    """Measure, show and write."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results = overhead(arguments)
    show(results, arguments, Console())
    if arguments.out:
        write_atomically(arguments.out, report(results, arguments))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
