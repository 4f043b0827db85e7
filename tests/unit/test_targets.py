"""Reference trajectories: what decides them, how exactly they are read and solved, how they are served."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import epd_golden, golden_mixture
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.wrappers import Counted, Guided
from solverdistill.evaluation.end_points import EndPoints
from solverdistill.families import build
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import Cosine, Flow
from solverdistill.objectives.distances import rmse
from solverdistill.references.batch import Batch
from solverdistill.references.datamodule import TargetDataModule
from solverdistill.references.seeding import SPLITS, noise_of, seeded_noise
from solverdistill.references.serving import SeededBatches, TargetData
from solverdistill.references.solving import Reference
from solverdistill.references.targets import CHUNK, Source, Targets, TargetSettings, describe, make_targets
from solverdistill.references.trajectory import Trajectory
from solverdistill.teachers.digits import edm_digits
from solverdistill.teachers.mixture import Mixture, toy_mixture

FAST = Reference(solver="euler", steps=6)
EPD = build("epd", Grid(steps=3), "edm", points=1)
DSS = build("dss", Grid(steps=4), "edm")


def labelled_mixture() -> Mixture:
    toy = toy_mixture()
    return Mixture(toy.means, toy.weights, toy.stds, labels=[0, 0, 1, 1])


def settings(root: Path | None = None, count: int = 10, **options: Any) -> TargetSettings:
    options = {"reference": FAST, "train_samples": count, **options}
    return TargetSettings(cache=None if root is None else str(root), **options)


def assert_same(a: Batch, b: Batch) -> None:
    for x, y in zip(pytree.tree_leaves(a[:4]), pytree.tree_leaves(b[:4]), strict=True):
        assert x is y is None or torch.equal(x, y)


# ----------------------------------------------------------------------------------------------- what decides a sample


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    teacher = labelled_mixture()
    noise, cond = seeded_noise(range(10, 20), teacher, seed=3)
    alone, label = seeded_noise([13], teacher, seed=3)
    assert torch.equal(noise[3:4], alone) and torch.equal(cond[3:4], label)
    assert not torch.equal(seeded_noise([13], teacher, seed=4)[0], alone)


@pytest.mark.parametrize("cached", [False, True])
def test_the_size_of_chunks_is_a_setting_and_part_of_the_cache(cached: bool, tmp_path: Path) -> None:
    teacher, root = Counted(toy_mixture()), tmp_path if cached else None
    small = make_targets(settings(root, 10, chunk=4), "train", toy_mixture(), teacher, EPD)
    assert teacher.images == 4 * teacher.calls and teacher.calls % 3 == 0  # three chunks of four samples
    large = make_targets(settings(root, 10), "train", toy_mixture(), teacher, EPD)
    assert torch.equal(small.batch.noise, large.batch.noise)
    torch.testing.assert_close(small.batch.targets, large.batch.targets, rtol=1e-5, atol=1e-5)
    again = make_targets(settings(root, 6, chunk=4), "train", toy_mixture(), teacher, EPD)
    assert torch.equal(again.batch.targets, small.batch.targets[:, :6])  # chunks are aligned to the global index
    assert len(list(tmp_path.glob("mixture-train-*"))) == (2 if cached else 0)
    with pytest.raises(ValueError, match="targets.chunk must be at least 1, not 0"):
        settings(chunk=0)


@pytest.mark.parametrize("cached", [False, True])
def test_end_points_of_an_evaluation_follow_the_size_of_chunks(cached: bool, tmp_path: Path) -> None:
    teacher, chosen = Counted(toy_mixture()), settings(tmp_path if cached else None, chunk=4)
    ends = EndPoints(Source(chosen, "test", toy_mixture(), teacher), samples=10)
    ends.prepare(lambda done: None, batch_size=5)
    assert teacher.images == 4 * teacher.calls and teacher.calls % 3 == 0
    made = make_targets(settings(None, chunk=4, test_samples=10), "test", toy_mixture(), toy_mixture())
    noise, _, end = ends.take(3, 9)
    assert torch.equal(noise, made.batch.noise[3:9]) and torch.equal(end, made.batch.end[3:9])


@pytest.mark.parametrize("cached", [False, True])
def test_a_sample_does_not_depend_on_how_many_are_made(cached: bool, tmp_path: Path) -> None:
    teacher, root = labelled_mixture(), tmp_path if cached else None
    few = make_targets(settings(root, 10), "train", teacher, teacher, EPD)
    many = make_targets(settings(root, CHUNK + 6), "train", teacher, teacher, EPD)
    assert (len(few), len(many)) == (10, CHUNK + 6)
    assert many.batch.targets.shape == (3, CHUNK + 6, 6)
    assert_same(few.batch, many.take(torch.arange(10)))


def test_splits_do_not_share_samples() -> None:
    teacher = toy_mixture()
    splits = [
        make_targets(settings(), split, teacher, teacher).batch.noise[:10] for split in ("train", "validation", "test")
    ]
    noises = torch.cat([*splits, seeded_noise(range(10), teacher, seed=1)[0]])
    assert len(noises.unique(dim=0)) == 40


def test_no_two_samples_of_a_seed_share_their_noise() -> None:
    ends = [start + offset for start in SPLITS.values() for offset in (*range(2000), (1 << 30) - 1)]
    words = {noise_of([index], (2,), seed=7).flatten().tolist()[0] for index in ends}
    assert len(words) > 0.999 * len(ends)
    with pytest.raises(ValueError, match=r"sample index 4294967296 is not between 0 and 2\^32"):
        noise_of([1 << 32], (2,))


# -------------------------------------------------------------------------------------------------------- the cache


def test_the_second_run_asks_the_teacher_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher, counted, reports = labelled_mixture(), Counted(labelled_mixture()), []
    first = make_targets(settings(tmp_path, 70), "train", teacher, counted, EPD)
    calls = counted.calls
    with caplog.at_level("INFO"):
        second = make_targets(
            settings(tmp_path, 70), "train", teacher, counted, EPD, progress=lambda *done: reports.append(done)
        )
    assert counted.calls == calls == 2 * (FAST.steps + 1)
    assert_same(first.batch, second.batch)
    assert_same(first.batch, make_targets(settings(None, 70), "train", teacher, teacher, EPD).batch)
    assert "70 of 70 reference trajectories (train) from the cache" in caplog.text
    assert reports[-1] == ("train", 70, 70)


def test_students_share_trajectories(tmp_path: Path) -> None:
    teacher, counted = toy_mixture(), Counted(toy_mixture())
    make_targets(settings(tmp_path), "train", teacher, counted, EPD)
    calls = counted.calls
    for family in (DSS, build("ld3", Grid(steps=5), "edm"), None):
        make_targets(settings(tmp_path), "train", teacher, counted, family)
    assert counted.calls == calls
    assert len([*tmp_path.iterdir()]) == 1


def test_what_decides_the_numbers_decides_the_folder() -> None:
    teacher = labelled_mixture()
    guided, rule = Guided(teacher, 2.0, teacher.null_cond), Grid(steps=3)
    nested = settings(Path("cache"), reference=Reference(solver="heun", nested=3))
    sources = [
        Source(settings(Path("cache")), "train", teacher, teacher),
        Source(settings(Path("cache")), "test", teacher, teacher),
        Source(settings(Path("cache"), seed=1), "train", teacher, teacher),
        Source(settings(Path("cache")), "train", teacher, guided),
        Source(settings(Path("cache")), "train", toy_mixture(), toy_mixture()),
        Source(settings(Path("cache"), reference=Reference(steps=6)), "train", teacher, teacher),
        Source(settings(Path("cache"), reference=Reference(solver="dopri5")), "train", teacher, teacher),
        Source(settings(Path("cache"), reference=Reference(solver="dopri5", rtol=1e-3)), "train", teacher, teacher),
        Source(nested, "train", teacher, teacher, rule=rule),
        Source(nested, "train", teacher, teacher, rule=rule.with_steps(4)),
    ]
    folders = {source.cache().folder for source in sources if source.cache() is not None}
    assert len(folders) == len(sources)
    same = Source(settings(Path("cache"), 99), "train", teacher, Guided(Counted(teacher), 1.0, teacher.null_cond))
    assert same.cache().folder == sources[0].cache().folder
    assert Source(settings(), "train", teacher, teacher).cache() is None


def test_a_denoiser_that_cannot_be_described_is_not_cached(tmp_path: Path) -> None:
    teacher = toy_mixture()
    with pytest.raises(ValueError, match="cannot tell what a function computes"):
        make_targets(settings(tmp_path), "train", teacher, lambda x, alpha, sigma: teacher(x, alpha, sigma))


class Prompted(Teacher):
    """A teacher whose condition is a tree; it denoises to a constant that the condition gives."""

    def __init__(self) -> None:
        super().__init__("prompted", (3,))

    def draw_cond(self, generator: torch.Generator) -> Any:
        return {"text": torch.randn(2, generator=generator), "size": (torch.randint(9, (), generator=generator),)}

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        return (cond["text"].sum(1) + cond["size"][0])[:, None].expand_as(x)


@pytest.mark.parametrize("cached", [False, True])
def test_conditions_that_are_trees_travel(cached: bool, tmp_path: Path) -> None:
    teacher = Prompted()
    made = make_targets(settings(tmp_path if cached else None, 70), "train", teacher, teacher, EPD)
    batch = made.take(torch.tensor([66, 2]))
    wanted = seeded_noise([66, 2], teacher)[1]
    assert torch.equal(batch.cond["text"], wanted["text"]) and torch.equal(batch.cond["size"][0], wanted["size"][0])
    constant = (batch.cond["text"].sum(1) + batch.cond["size"][0])[:, None]
    assert torch.allclose(batch.end, constant.expand_as(batch.end), atol=1e-2)


# ------------------------------------------------------------------------------------------------ whole trajectories


@pytest.mark.parametrize("cached", [False, True])
def test_students_that_learn_levels_get_whole_trajectories(cached: bool, tmp_path: Path) -> None:
    teacher, root, index = labelled_mixture(), tmp_path if cached else None, torch.tensor([65, 3, 64])
    fixed = make_targets(settings(root, 70), "train", teacher, teacher, EPD)
    learned = make_targets(settings(root, 70), "train", teacher, teacher, DSS)
    asked = make_targets(settings(root, 70), "train", teacher, teacher, EPD, dense=True)
    levels = EPD.prepared_levels({name: value for name, value in EPD.init(0).items()})[1:]
    for dense in (learned, asked):
        batch = dense.take(index)
        assert batch.targets.shape == (0, 3, 6)
        assert batch.reference is not None and batch.reference.states.dtype == torch.float32
        assert torch.equal(batch.targets_at(levels), fixed.take(index).targets)
        assert torch.equal(batch.reference.end(), batch.end)
        assert torch.equal(batch.reference.states[0], batch.noise * 80.0)
    assert fixed.take(index).reference is None
    assert make_targets(settings(root), "test", teacher, teacher, None, dense=True).take(index).reference is None


def trajectory(teacher: Teacher, count: int, steps: int = 40, seed: int = 0) -> Trajectory:
    noise, cond = seeded_noise(range(count), teacher, seed)
    with torch.no_grad():
        return Reference(solver="dopri5", steps=steps).solve(teacher, teacher, noise, cond)


@cache
def of_digits() -> Trajectory:
    """Four exact solves of the digits' network, read by several tests."""
    return trajectory(edm_digits(), 4)


def read_out_error(teacher: Teacher, read: Trajectory) -> float:
    """Largest RMSE of a sample between grid points, in units of the state, against a solve that stops there."""
    between = read.clock[1:] ** 0.5 * read.clock[:-1] ** 0.5
    stops = torch.cat([read.clock[:1], between, read.clock[-1:]])
    noise, cond = seeded_noise(range(read.states.shape[1]), teacher)
    solved = Exactly(stops.tolist()).solve(teacher, teacher, noise, cond)
    levels = [teacher.path.straight(u) for u in between]
    pairs = zip(read.at(levels), solved.at(levels), levels, strict=True)
    return max(float((rmse(a, b) / level.hypot()).max()) for a, b, level in pairs)


class Exactly:
    """Dormand-Prince on given noise levels of the EDM path."""

    def __init__(self, levels: list[float]) -> None:
        self.levels = levels

    def solve(self, teacher: Teacher, denoiser: Any, noise: Tensor, cond: Any) -> Trajectory:
        from solverdistill.references.solving import solve_adaptive

        with torch.no_grad():
            return solve_adaptive(teacher.path, self.levels, denoiser, noise, cond)


def test_reading_between_points_is_fourth_order_on_the_mixture() -> None:
    errors = {steps: read_out_error(toy_mixture(), trajectory(toy_mixture(), 64, steps)) for steps in (40, 80, 160)}
    assert errors[40] < 5e-4
    assert errors[80] < errors[40] / 8 < 6e-5 and errors[160] < errors[80] / 8


def test_reading_between_points_of_the_digits() -> None:
    assert read_out_error(edm_digits(), of_digits()) < 2e-5


def test_reading_at_a_point_is_exact_and_beyond_the_beginning_refused() -> None:
    teacher = toy_mixture()
    solved = trajectory(teacher, 3)
    levels = [teacher.path.level(u) for u in solved.clock[[0, 17, 40]]]
    torch.testing.assert_close(solved.at(levels), solved.states[[0, 17, 40]], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"begins at clock 80 and has no state at 120; .* largest noise level"):
        solved.at([teacher.path.level(120.0)])


def test_the_derivative_in_the_level_is_the_slope() -> None:
    teacher = toy_mixture()
    solved, u = trajectory(teacher, 3, steps=160), float64(1.3).requires_grad_()
    state = solved.at([teacher.path.level(u)])[0]
    (derivative,) = torch.autograd.grad(state[2, 4], u)
    level = teacher.path.level(u.detach())
    denoised = teacher(state.detach(), *(value.expand(3) for value in level))
    slope = (state.detach() - denoised) / u.detach()
    torch.testing.assert_close(derivative, slope[2, 4], rtol=1e-3, atol=1e-4)


def test_a_trajectory_moves_and_splits() -> None:
    solved = trajectory(toy_mixture(), 3)
    part = solved.take(torch.tensor([2, 0])).to(torch.float32)
    assert part.states.dtype == part.slopes.dtype == torch.float32 and part.clock.dtype == torch.float64
    assert torch.equal(part.states, solved.states[:, [2, 0]].float())
    assert torch.equal(part.end(), part.states[-1])


# --------------------------------------------------------------------------------------------------------- dopri5


@pytest.mark.parametrize(("tolerance", "error"), [(1e-6, 1e-6), (1e-10, 1e-9)])
def test_dopri5_reaches_the_golden_solution(tolerance: float, error: float) -> None:
    golden = epd_golden("reference_ode")
    reference = Reference(solver="dopri5", rtol=tolerance, atol=tolerance)
    denoiser = golden_mixture(golden)
    solved = reference.solve(denoiser, denoiser, golden["z"])
    torch.testing.assert_close(solved.end(), golden["x_ref"], rtol=0, atol=error)
    family = build("heun", reference.levels(denoiser.path, denoiser.noise_range), "edm")
    states = torch.stack([*family.solve(denoiser, golden["z"])])
    torch.testing.assert_close(solved.states[1:], states, rtol=0, atol=0.1)
    slopes = [
        (y - denoiser(y, torch.ones(8), u.expand(8))) / u for y, u in zip(solved.states, solved.clock, strict=True)
    ]
    torch.testing.assert_close(solved.slopes, torch.stack(slopes), rtol=1e-10, atol=1e-10)


def test_the_default_reference_is_close_to_dopri5_on_the_digits() -> None:
    teacher, exact = edm_digits(), of_digits()
    with torch.no_grad():
        default = Reference().solve(teacher, teacher, *seeded_noise(range(4), teacher))
    assert 1e-4 < float(rmse(default.end(), exact.end()).mean()) < 2e-3


def test_dopri5_ends_at_clean_data() -> None:
    toy = toy_mixture()
    flow = Mixture(toy.means, toy.weights, toy.stds, path=Flow(), noise_range=(1.0, 0.0))
    noise, _ = seeded_noise(range(8), flow)
    solved = Reference(solver="dopri5", grid="flow_shift", rtol=1e-9, atol=1e-9).solve(flow, flow, noise)
    coarse, fine = (
        Reference(solver="heun", grid="flow_shift", steps=steps).solve(flow, flow, noise) for steps in (320, 640)
    )
    exact = (4 * fine.end() - coarse.end()) / 3  # Richardson's extrapolation: the end is of second order,
    torch.testing.assert_close(solved.end(), exact, rtol=0, atol=1e-6)
    exact = 2 * fine.slopes[-1] - coarse.slopes[-1]  # the slope there of first
    torch.testing.assert_close(solved.slopes[-1], exact, rtol=0, atol=1e-2)


def test_dopri5_says_when_the_network_is_too_coarse() -> None:
    teacher = toy_mixture()
    noise, _ = seeded_noise(range(2), teacher)
    with pytest.raises(ValueError, match="dopri5 cannot reach rtol=1e-14, .* allow more, or take a fixed-step"):
        Reference(solver="dopri5", rtol=1e-14, atol=1e-14, steps=2).solve(teacher, Rounded(teacher), noise)


class Rounded(Counted):
    """A denoiser of half precision."""

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        return super().forward(x, alpha, sigma, cond).half().to(x.dtype)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="rtol=0.1 of the reference belongs to dopri5; ipndm takes fixed steps"):
        Reference(rtol=0.1)
    with pytest.raises(ValueError, match="targets.reference.atol must be above 0, not -1"):
        Reference(solver="dopri5", atol=-1)
    with pytest.raises(ValueError, match="nested reference refines the grid of a student, and none was given"):
        Reference(nested=3).levels(toy_mixture().path, (80.0, 0.002))
    with pytest.raises(ValueError, match="cosine path cannot begin at 1, .* slightly lower"):
        Reference().levels(Cosine(), (1.0, 0.01))
    with pytest.raises(ValueError, match="targets.test_samples must be at least 1, not 0"):
        settings(test_samples=0)


def test_descriptions_name_the_wrappers() -> None:
    teacher = labelled_mixture()
    described = describe(Guided(teacher, 3.0, teacher.null_cond))
    assert described == {"guidance": 3.0, "of": {"teacher": "mixture", "fingerprint": teacher.fingerprint()}}


# -------------------------------------------------------------------------------------------------------- batches


def numbered(count: int) -> Targets:
    x = torch.arange(count, dtype=torch.float32)[:, None]
    return Targets(Batch(x, x[None], x, {"label": torch.arange(count)}))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_see_the_global_batch(world: int) -> None:
    data = numbered(10)
    whole = SeededBatches(data, 8, 5, seed=3)
    parts = [SeededBatches(data, 8, 5, seed=3, rank=rank, world=world) for rank in range(world)]
    for step in range(5):
        together = torch.stack([part.indices(step) for part in parts], dim=1).flatten()
        assert torch.equal(together, whole.indices(step))


def test_every_pass_sees_every_sample_once_in_a_new_order() -> None:
    loader = SeededBatches(numbered(12), 4, 6)
    seen = torch.cat([batch.noise[:, 0] for batch in loader]).long().view(2, 12)
    assert all(torch.equal(order.sort().values, torch.arange(12)) for order in seen)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], SeededBatches(numbered(12), 12, 1, seed=1).indices(0))


def test_a_batch_is_larger_than_the_data() -> None:
    (batch,) = SeededBatches(numbered(3), 8, 1)
    assert batch.noise.shape == (8, 1) and torch.equal(batch.cond["label"].float(), batch.noise[:, 0])


def test_batches_that_cannot_be_served_are_refused() -> None:
    with pytest.raises(ValueError, match="batch of 8 cannot be shared evenly by 3 processes"):
        SeededBatches(numbered(10), 8, 1, world=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        SeededBatches(numbered(10), 0, 1)


def test_the_data_module_serves_its_process() -> None:
    teacher = toy_mixture()
    data = TargetData(settings(validation_samples=300), teacher, teacher, DSS)
    module = TargetDataModule(data, 4, 5)
    module.trainer = SimpleNamespace(global_rank=1, world_size=2)  # pyright: ignore[reportAttributeAccessIssue]
    loader = module.train_dataloader()
    assert (loader.rank, loader.world, len(loader)) == (1, 2, 5)
    assert all(batch.noise.shape == (2, 6) and batch.reference is not None for batch in loader)
    validation = [*module.val_dataloader()]
    assert [len(batch.noise) for batch in validation] == [256, 44]
    assert all(batch.reference is None for batch in validation)
    assert torch.equal(torch.cat([batch.end for batch in validation]), data.split("validation").batch.end)


class Recorder(LightningModule):
    """Records the samples of its batches; fails before step `fail_at`."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at, self.seen = fail_at, []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == self.fail_at:
            raise InterruptedError("killed")
        assert batch.reference is None
        self.seen.append((batch_idx, batch.noise[:, 0].tolist()))
        return self.weight * batch.noise.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_killed_run_resumes_with_the_same_batches(tmp_path: Path) -> None:
    def fit(module: Recorder, checkpoint: str | None = None) -> list[tuple[int, list[float]]]:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=2)],
            use_distributed_sampler=False,
        )
        trainer.fit(module, SeededBatches(numbered(10), 4, 8), ckpt_path=checkpoint, weights_only=True)
        return module.seen

    whole = fit(Recorder())
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(InterruptedError):
        fit(Recorder(fail_at=5))
    resumed = fit(Recorder(), str(tmp_path / "last.ckpt"))
    assert len(whole) == 8 and resumed == whole[4:]
