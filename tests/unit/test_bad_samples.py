"""Samples that are not finite are named as soon as they are made, and stopped at or left out."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.wrappers import Counted
from solverdistill.evaluation.end_points import EndPoints
from solverdistill.families import build
from solverdistill.noise.grids import Grid
from solverdistill.references.solving import Reference
from solverdistill.references.targets import Source, TargetSettings, make_targets
from solverdistill.teachers.mixture import Mixture, toy_mixture

EULER, DOPRI5 = Reference(solver="euler", steps=6), Reference(solver="dopri5", steps=6, rtol=1e-4, atol=1e-4)
EPD = build("epd", Grid(steps=3), "edm", points=1)
COUNT, CHUNK, BELOW = 200, 64, 5.0


class Spoilt(Mixture):
    """A mixture whose network gives nan where a state is far out, at noise levels below `BELOW`.

    It remembers how far out the samples of every chunk were.
    """

    limit: float
    reached: list[Tensor]

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        denoised = super().forward(x, alpha, sigma, cond)
        far = torch.where(sigma < BELOW * alpha, x[:, 0] / alpha, -math.inf)
        if float(sigma[0] / alpha[0]) > 79 and (not self.reached or bool((self.reached[-1] > -math.inf).any())):
            self.reached.append(far)
        self.reached[-1] = torch.maximum(self.reached[-1], far)
        return torch.where((far > self.limit)[:, None], torch.nan, denoised)


def spoilt(limit: float = math.inf) -> Spoilt:
    toy = toy_mixture()
    teacher = Spoilt(toy.means, toy.weights, toy.stds, labels=[0, 0, 1, 1])
    teacher.limit, teacher.reached = limit, []
    return teacher


def settings(root: Path | None = None, reference: Reference = EULER, **options: Any) -> TargetSettings:
    options = {"train_samples": COUNT, "chunk": CHUNK, **options}
    return TargetSettings(reference, cache=None if root is None else str(root), **options)


def made(teacher: Teacher, how: TargetSettings, split: str = "train", **options: Any) -> Any:
    return make_targets(how, split, teacher, teacher, EPD, **options)


def reached(reference: Reference = EULER, split: str = "train") -> tuple[Tensor, Any]:
    """How far out every sample comes, and all samples."""
    teacher = spoilt()
    clean = made(teacher, settings(None, reference, validation_samples=COUNT), split, dense=True)
    return torch.cat(teacher.reached)[:COUNT], clean


def one_far_out(reference: Reference = EULER, split: str = "train") -> tuple[Spoilt, int, float]:
    """A teacher that spoils one sample, which one, and the grid point at whose noise level that begins."""
    far, clean = reached(reference, split)
    limit, worst = float(far.topk(2).values.mean()), int(far.argmax())
    states = clean.trajectories(torch.tensor([worst])).states[:, 0, 0]  # on the edm path in their own scale
    levels = torch.tensor(reference.levels(toy_mixture().path, toy_mixture().noise_range))
    point = int(((states > limit) & (levels < BELOW)).int().argmax())
    return spoilt(limit), worst, float(levels[point])


def test_stop_names_the_sample_its_condition_and_the_noise_level(tmp_path: Path) -> None:
    teacher, worst, level = one_far_out()
    label = int(made(spoilt(), settings()).batch.cond[worst])
    sentence = (
        rf"train sample {worst} \(global index {worst}, condition {label}\) is not finite from noise level {level:.4g} "
        "of the edm path on.*targets.on_bad_sample=skip"
    )
    for root in (None, tmp_path):
        with pytest.raises(ValueError, match=sentence):
            made(teacher, settings(root))
    # What was made before is kept, the chunk of the bad sample is not, and nothing is made after it.
    assert len(list(tmp_path.rglob("shard-*"))) == worst // CHUNK


def test_held_out_samples_have_a_global_index_of_their_own() -> None:
    worst = one_far_out(split="validation")
    with pytest.raises(ValueError, match=rf"validation sample {worst[1]} \(global index {(1 << 30) + worst[1]}, "):
        made(worst[0], settings(validation_samples=COUNT), "validation")


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_skip_leaves_the_sample_out_and_all_others_as_they_are(
    cached: bool, dense: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, worst, _ = one_far_out()
    clean = made(spoilt(), settings(), dense=dense)
    with caplog.at_level(logging.WARNING):
        found = made(teacher, settings(tmp_path if cached else None, on_bad_sample="skip"), dense=dense)
    assert (
        f"left out 1 of {COUNT} train samples, which are not finite; the first is train sample {worst} " in caplog.text
    )
    kept = torch.tensor([i for i in range(COUNT) if i != worst])
    assert len(found) == COUNT - 1
    order = torch.randperm(COUNT - 1)
    ours, theirs = found.take(order), clean.take(kept[order])
    for name in ("noise", "targets", "end", "cond"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    if dense:
        assert torch.equal(ours.reference.states, theirs.reference.states)
        assert torch.equal(ours.reference.slopes, theirs.reference.slopes)


def test_what_one_run_left_out_another_one_stops_at(tmp_path: Path) -> None:
    teacher, worst, _ = one_far_out()
    made(teacher, settings(tmp_path, on_bad_sample="skip"))
    counted = Counted(teacher)
    with pytest.raises(ValueError, match=f"train sample {worst} .* is not finite"):
        make_targets(settings(tmp_path), "train", teacher, counted, EPD)
    assert counted.calls == 0
    few = make_targets(settings(tmp_path, train_samples=worst), "train", teacher, counted, EPD)  # which has it not
    assert len(few) == worst and counted.calls == 0


def test_more_than_a_hundredth_is_refused() -> None:
    limit = float(reached()[0].topk(4).values[2:].mean())
    with pytest.raises(ValueError, match=rf"3 of {COUNT} train samples are not finite, and at most 1% are left out"):
        made(spoilt(limit), settings(on_bad_sample="skip"))
    with pytest.raises(ValueError, match="of the edm path on, and 63 more of its chunk: the teacher"):
        made(spoilt(-math.inf), settings())
    with pytest.raises(ValueError, match="targets.on_bad_sample must be stop or skip, not 'ignore'"):
        settings(on_bad_sample="ignore")


def test_a_bad_sample_does_not_stop_the_adaptive_solver() -> None:
    teacher, worst, _ = one_far_out(DOPRI5)
    clean, found = (made(one, settings(None, DOPRI5, on_bad_sample="skip")) for one in (spoilt(), teacher))
    kept = torch.tensor([i for i in range(COUNT) if i != worst])
    assert len(found) == COUNT - 1
    torch.testing.assert_close(found.batch.end, clean.batch.end[kept], rtol=1e-3, atol=1e-3)  # its steps are others
    with pytest.raises(ValueError, match=rf"train sample {worst} .* is not finite"):
        made(teacher, settings(None, DOPRI5))


@pytest.mark.parametrize("cached", [False, True])
def test_an_evaluation_stops_and_offers_no_skip(cached: bool, tmp_path: Path) -> None:
    teacher, worst, _ = one_far_out()
    how = settings(tmp_path if cached else None, on_bad_sample="skip")
    ends = EndPoints(Source(how, "train", teacher, teacher), COUNT)
    with pytest.raises(ValueError, match=rf"train sample {worst} .* take another targets.seed$"):
        ends.prepare(lambda done: None, 32)
