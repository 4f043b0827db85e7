"""Distil a solver through a whole pipeline, export it, and play it back in that pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import solverdistill
from scripts.benchmarks.teaching import teacher_of
from scripts.benchmarks.tiny.pipelines import TINY
from solverdistill import families
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.noise.grids import Grid
from tests.diffusers_networks import assert_close_to_scale

FEW = {"train_samples": 4, "validation_samples": 4, "test_samples": 4, "chunk": 4, "cache": None}
TARGETS = {**FEW, "reference": {"solver": "ipndm", "steps": 6, "grid": "time_uniform"}}
SHORT = {"race": {"starts": False}, "gauss_newton": {"iterations": 2, "samples": 4}}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(before)


class Seen(LearnedSolverScheduler):
    """Keeps the states that come in and go out, of all streams."""

    states: list[tuple[Tensor, Tensor]]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *others: Any, **options: Any) -> Any:
        before = sample.clone()
        result = super().step(model_output, timestep, sample, *others, **options)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        self.states.append((before, after.clone()))
        return result


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The states of all streams as the teacher has them."""
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], dim=1)


def round_trip(name: str, solver: str, nfe: int, file: Path, fit: dict[str, Any]) -> None:
    tiny = TINY[name]()
    teacher = teacher_of(tiny, torch.float32, noise_range=(1.0, 0.02))
    done = solverdistill.distill(teacher, solver, nfe, fit=fit, targets=TARGETS, progress=False)
    assert done.rmse < 1.0
    done.save(file)
    assert solverdistill.read_solver(file).provenance["guidance"] == teacher.own_guidance

    ran = dict.fromkeys(teacher.networks, 0)

    def count(name: str) -> None:
        ran[name] += 1

    for part, network in teacher.networks.items():
        network.register_forward_pre_hook(lambda module, inputs, part=part: count(part))
    last, expected = play(tiny, teacher, solverdistill.load_solver(file))
    assert all(ran.values())  # of two experts both
    assert_close_to_scale(last, expected, 1e-5)


def play(tiny: Any, teacher: Any, program: Any) -> tuple[Tensor, Tensor]:
    """Last states of a program in a pipeline, and through its teacher from the noise that the pipeline drew."""
    scheduler: Any = Seen.from_solver(program, tiny.pipe, initial_noise="scaled")
    Seen.states, streams = [], len(teacher.shapes)
    tiny.pipe.scheduler = scheduler
    tiny.run(program.nfe)
    first = joined([before for before, _ in Seen.states[:streams]]) / scheduler.first_scale
    with torch.no_grad():
        expected = solverdistill.sample(program, teacher, first, stage_batch=1)
    return joined([after for _, after in Seen.states[-streams:]]), expected


@pytest.mark.parametrize(
    "name",
    [
        "CogVideoXPipeline",  # v, its table shifted by its scheduler
        "CogView4Pipeline",  # unshifted times
        "HunyuanVideo15Pipeline",  # a guider
        "Kandinsky5T2VPipeline",  # a mask behind its latents, which it writes into
        "OmniGenPipeline",  # reversed time
        "StableVideoDiffusionPipeline",  # continuous times, image conditions
        "WanImageToVideoPipeline, a kept frame",
    ],
)
def test_a_teacher_and_its_pipeline_play_the_same(name: str) -> None:
    tiny = TINY[name]()
    if name.startswith("StableVideo"):
        tiny.arguments["noise_aug_strength"] = 0.0  # noise on the image, which differs with the generator
    teacher = teacher_of(tiny, torch.float32)
    flow = teacher.prediction == "flow"
    grid = Grid("flow_shift", 2, 1.0, 0.05, shift=3.0) if flow else Grid("time_uniform", 2, 0.98, 0.02)
    family = families.build("epd", grid, "flow" if flow else teacher.path, points=2, afs=False)
    last, expected = play(tiny, teacher, family.program(family.init(1)).detach())
    assert_close_to_scale(last, expected, 1e-5)


@pytest.mark.parametrize(("name", "solver", "nfe"), [("StableDiffusion3Pipeline", "gas", 3)])
def test_distil_export_and_play_back(name: str, solver: str, nfe: int, tmp_path: Path) -> None:
    round_trip(name, solver, nfe, tmp_path / "solver.json", SHORT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "solver", "nfe"),
    [
        ("WanPipeline, two experts", "dss", 4),
        ("Flux2Pipeline", "epd", 5),
        ("QwenImagePipeline", "epd", 5),
        ("ZImagePipeline", "bns", 3),
        ("LTX2Pipeline", "bns", 3),
    ],
)
def test_distil_export_and_play_back_of_further_pipelines(name: str, solver: str, nfe: int, tmp_path: Path) -> None:
    round_trip(name, solver, nfe, tmp_path / "solver.json", SHORT)


def test_a_run_names_the_guidance_of_the_pipeline() -> None:
    tiny = TINY["StableDiffusion3Pipeline"]()
    teacher = teacher_of(tiny, torch.float32, noise_range=(1.0, 0.02))
    done = solverdistill.distill(teacher, "bns", 2, guidance=5.0, fit="race", targets=TARGETS, progress=False)
    assert done.provenance["guidance"] == 5.0 and done.provenance["teacher"]["guidance"] == 5.0
    assert done.provenance["teacher"]["pipeline"] == "StableDiffusion3Pipeline"
