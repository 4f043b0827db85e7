"""Work that a device has no memory for: in parts where it can be, with the same results, else one sentence."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill import distill
from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import make_guided
from solverdistill.denoisers.wrappers import InParts
from solverdistill.families import build
from solverdistill.fits.gauss_newton.normal_equations import Equations
from solverdistill.fits.gauss_newton.sketches import random_signs
from solverdistill.noise.grids import Grid
from solverdistill.references.batch import Batch
from solverdistill.references.solving import Reference
from solverdistill.references.targets import TargetSettings, make_targets
from solverdistill.support.memory import OutOfMemory, Parts, is_out_of_memory, lower
from solverdistill.support.mistakes import explain
from solverdistill.teachers.mixture import Mixture, toy_mixture

EPD = build("epd", Grid(steps=3), "edm", points=1)
PER_SAMPLE = 40 << 20  # bytes that the hungry network takes for each sample; so many are never kept for reuse
SMALL = {"train_samples": 64, "validation_samples": 16, "cache": None, "reference": {"solver": "euler", "steps": 6}}


class Hungry(Mixture):
    """A mixture that takes much memory for every sample, for real."""

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        self.batches.append(len(x))
        activations = torch.empty(len(x), PER_SAMPLE, dtype=torch.uint8)
        del activations
        return super().forward(x, alpha, sigma, cond)


class Limited(Mixture):
    """A mixture on a device that has memory for so many samples at once, fewer where a graph is kept."""

    most, most_with_graph = 1000, 1000

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        self.batches.append(len(x))
        if len(x) > (self.most_with_graph if torch.is_grad_enabled() else self.most):
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB of which 1 GiB is "
                "free. See documentation for Memory Management"
            )
        return super().forward(x, alpha, sigma, cond)


def a(kind: type[Mixture], **options: int) -> Any:
    toy = toy_mixture()
    teacher = kind(toy.means, toy.weights, toy.stds, labels=[0, 0, 1, 1])
    vars(teacher).update(batches=[], **options)
    return teacher


def targets(teacher: Teacher, reference: Reference, chunk: int = 32) -> Batch:
    settings = TargetSettings(reference, train_samples=40, cache=None, chunk=chunk)
    return make_targets(settings, "train", teacher, make_guided(teacher, 2.0)[1], EPD).batch


@contextmanager
def memory_left(size: int) -> Iterator[None]:
    """This process gets so much more memory and no more."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux limits the memory of a process")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_a_host_without_memory_solves_the_same_targets_in_parts(solver: str, caplog: pytest.LogCaptureFixture) -> None:
    reference = Reference(solver=solver, steps=6)
    whole = targets(a(Hungry), reference)
    teacher = a(Hungry)
    with memory_left(20 * PER_SAMPLE), caplog.at_level(logging.WARNING):
        parts = targets(teacher, reference)
    # 32 samples are 64 with guidance; there is memory for less than 20.
    assert set(teacher.batches) == {64, 32, 16} and teacher.batches.count(64) == teacher.batches.count(32) == 1
    assert caplog.messages == ["no memory for a network call of 32 samples at once; going on with 8 at a time"]
    for name in ("noise", "targets", "end", "cond"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-6, atol=1e-6)


def test_a_network_that_takes_no_sample_is_one_sentence() -> None:
    sentence = r"the network, given a single sample, ran out of memory \(.*allocate.*\); take a device with more"
    with memory_left(PER_SAMPLE // 2), pytest.raises(OutOfMemory, match=sentence) as caught:
        targets(a(Hungry), Reference(solver="euler", steps=6))
    assert explain(caught.value) == str(caught.value)


def test_parts_keep_what_is_done_and_their_size() -> None:
    parts, seen = Parts(None, "a test"), []

    def work(rows: slice) -> range:
        seen.append(rows.stop - rows.start)
        if len(seen) in (1, 3):
            raise MemoryError
        return range(rows.start, rows.stop)

    assert [i for part in parts.run(10, work) for i in part] == list(range(10))
    assert seen == [10, 5, 5, 3, 2] and parts.size == 3
    assert parts.run(0, work) == []

    def broken(rows: slice) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        parts.run(10, broken)
    assert parts.size == 3


def test_a_batch_that_keeps_its_graph_is_not_cut() -> None:
    teacher = a(Limited, most=4, most_with_graph=4)
    x, level = torch.randn(8, 6, requires_grad=True), torch.ones(8)
    with pytest.raises(torch.OutOfMemoryError):
        InParts(teacher)(x, level, level)
    assert teacher.batches == [8]


@pytest.mark.parametrize("jacobian", ["sketch", "exact"])
def test_derivatives_in_halves_are_those_of_the_whole(jacobian: str) -> None:
    noise = torch.randn(16, 6, dtype=torch.float64)
    batch, signs = (
        Batch(noise, noise[None][:0], torch.randn(16, 6).double()),
        random_signs((1, 16, 6), torch.Generator()),
    )
    params = EPD.init(0)

    def found(**limits: int) -> Any:
        equations = Equations(InParts(a(Limited, **limits)), 16, jacobian)
        return equations.parts, equations(EPD, params, batch, signs, 1e-3, 16)

    (_, whole), (parts, halves) = found(), found(most=4, most_with_graph=4)
    assert parts.size == 4
    torch.testing.assert_close(halves, whole, rtol=1e-9, atol=1e-12)


def test_gradient_descent_without_memory_names_its_batch() -> None:
    sentence = (
        r"fit=gradient ran out of memory \(Tried to allocate 2.50 GiB\); lower fit.gradient.batch_size \(16\), or set "
        "fit.gradient.checkpointing=true"
    )
    with pytest.raises(OutOfMemory, match=sentence):
        distill(
            a(Limited, most_with_graph=8),
            "epd",
            5,
            fit={"gradient": {"iterations": 2, "batch_size": 16}},
            targets=SMALL,
            device="cpu",
        )


def test_only_what_says_so_is_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"))
    assert not is_out_of_memory(RuntimeError("size mismatch")) and not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="^size mismatch"), lower("a test", "lower it"):
        raise RuntimeError("size mismatch")
    assert explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 8 GiB")) == (
        "out of memory: Tried to allocate 2.50 GiB; lower the batch size, or take a device with more"
    )
