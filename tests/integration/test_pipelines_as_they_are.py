"""A pipeline of every kind, unchanged, plays a table: as its own scheduler does, and as `sample` does."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from scripts.benchmarks.tiny.pipelines import TINY
from scripts.benchmarks.tiny.playing import (
    ChangedBetweenStepsError,
    against_own,
    against_sample,
    euler_table,
    first_order,
    learned_table,
    make_scheduler,
)
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.consumers.diffusers_config import find_network

KINDS = {
    "embedded guidance": "FluxPipeline",
    "packed": "QwenImagePipeline",
    "5D": "WanPipeline",
    "two experts": "WanPipeline, two experts",
    "negated time": "Lumina2Pipeline",
    "inverted sigmas": "OmniGenPipeline",
    "guider object": "HunyuanImagePipeline",
    "two schedulers": "LTX2Pipeline",
    "in place": "Kandinsky5T2VPipeline",
    "copies per frame": "SkyReelsV2DiffusionForcingPipeline",
    "unshifted times": "CogView4Pipeline",
    "own lists": "BriaPipeline",
    "inverted, own lists": "MochiPipeline",
    "reads the configuration": "BriaFiboPipeline",
    "a timestep per token": "LTXConditionPipeline",
    "shifted SNR": "CogVideoXPipeline",
    "continuous times": "StableVideoDiffusionPipeline",
    "eps": "StableDiffusionPipeline",
    "v": "StableDiffusionPipeline, v to zero SNR",
    "the image": "DDIMPipeline",
    "DiT": "DiTPipeline",
}
REFUSED = {
    "AnyFlowPipeline": "no steps of an ODE but jumps of a flow map",
    "SanaSprintPipeline": "no steps of an ODE but estimates of a consistency model",
    "LatentConsistencyModelPipeline": "no steps of an ODE but estimates of a consistency model",
    "StableAudioPipeline": "preconditions its network as EDM does",
    "Cosmos2TextToImagePipeline": "preconditions its network as EDM does",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning:diffusers"
)


@pytest.fixture(autouse=True)
def quiet() -> None:
    """diffusers logs what it thinks of pipelines without tokenizers."""
    from diffusers.utils import logging

    logging.set_verbosity_error()


@pytest.mark.parametrize("kind", KINDS)
def test_eulers_table_is_the_pipelines_own_scheduler(kind: str) -> None:
    assert against_own(TINY[KINDS[kind]]()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_table_is_sample(kind: str) -> None:
    made = TINY[KINDS[kind]]()
    if kind == "a timestep per token":  # keeps the tokens of the given picture
        with pytest.raises(ChangedBetweenStepsError):
            against_sample(made)
    else:
        assert against_sample(made) < 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_a_scheduler_that_no_table_replaces_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        LearnedSolverScheduler.from_solver(learned_table("epd", True, 2), TINY[name]().pipe)
    assert "\n" not in str(caught.value)


def test_the_comparison_sees_a_wrong_time() -> None:
    """So that the equalities above are worth something: half a percent off is seen."""
    made = TINY["WanPipeline"]()
    made.run(4)
    program = euler_table(made.pipe.scheduler)
    expected = made.run(4)
    made.pipe.scheduler = scheduler = make_scheduler(program, made)
    scheduler._numbers = [0.995 * number for number in scheduler._numbers]
    assert float((made.run(4) - expected).abs().max() / expected.abs().max()) > 1e-4


@pytest.mark.parametrize(
    "name", ["FluxPipeline", "OmniGenPipeline", "CogVideoXPipeline", "SkyReelsV2DiffusionForcingPipeline"]
)
def test_the_scheduler_from_before_comes_back(name: str, tmp_path: Any) -> None:
    pipe = TINY[name]().pipe
    before = pipe.scheduler
    network = find_network(before, None)
    learned = LearnedSolverScheduler.from_solver(learned_table("epd", network.is_flow, 2), pipe)
    learned = LearnedSolverScheduler.from_solver(learned_table("unipc", network.is_flow, 3), learned)  # twice
    learned.save_pretrained(tmp_path)
    for config in (learned.config, LearnedSolverScheduler.from_pretrained(tmp_path).config):
        after = type(before).from_config(config)
        own = {key: value for key, value in before.config.items() if key[0] != "_"}
        assert {key: after.config[key] for key in own} == own
    other = diffusers.FlowMatchEulerDiscreteScheduler if network.is_flow else diffusers.EulerDiscreteScheduler
    direct, back = other.from_config(before.config).config, other.from_config(learned.config).config
    assert {key: back[key] for key in direct if key[0] != "_"} == {k: v for k, v in direct.items() if k[0] != "_"}


@pytest.mark.parametrize(
    "name", ["CogVideoXPipeline", "StableDiffusionPipeline, v to zero SNR", "StableDiffusionPipeline"]
)
def test_training_schedules_are_those_of_diffusers(name: str) -> None:
    made = TINY[name]()
    learned = make_scheduler(learned_table("epd", False, 2), made)
    torch.testing.assert_close(learned.alphas_cumprod, made.pipe.scheduler.alphas_cumprod.float(), rtol=1e-5, atol=1e-7)
    assert not hasattr(make_scheduler(learned_table("epd", True, 2), TINY["WanPipeline"]()), "alphas_cumprod")


def test_lists_of_a_user_are_refused_and_those_of_a_pipeline_taken() -> None:
    made = TINY["FluxPipeline"]()
    learned = make_scheduler(learned_table("unipc", True, 3), made)
    with pytest.raises(ValueError, match="call the pipeline without sigmas"):
        learned.set_timesteps(sigmas=[1.0, 0.7, 0.2])
    learned.set_timesteps(sigmas=torch.tensor([1.0, 0.7, 0.2]))
    with pytest.raises(ValueError, match="num_inference_steps=3"):
        learned.set_timesteps(sigmas=torch.tensor([1.0, 0.2]))


def test_times_that_cannot_be_brought_back_are_refused() -> None:
    made = TINY["CogView4Pipeline"]()
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", **made.pipe.scheduler.config, "shift_terminal": 0.1}
    made.pipe.scheduler = LearnedSolverScheduler.from_solver(learned_table("unipc", True, 3), config)
    with pytest.raises(ValueError, match="other times than noise levels, and with shift_terminal"):
        made.run(3)
    learned = LearnedSolverScheduler.from_solver(learned_table("unipc", True, 3), TINY["CogView4Pipeline"]().pipe)
    given = torch.tensor([900.0, 500.0, 100.0])
    with pytest.raises(ValueError, match="give set_timesteps mu"):
        learned.set_timesteps(timesteps=given)
    unknown = LearnedSolverScheduler.from_solver(
        learned_table("unipc", True, 3), {"prediction_type": "flow_prediction"}
    )
    with pytest.raises(ValueError, match="a scheduler that is not known; make the scheduler with from_solver"):
        unknown.set_timesteps(timesteps=given)


def test_a_pyramid_of_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="changes the size of the image between its 3 stages"):
        find_network(diffusers.HeliosScheduler(), None)


def test_a_first_order_of_another_kind_is_what_the_comparison_runs() -> None:
    """DPM-Solver++ at order one is Euler's table; at order two it is not, which `first_order` is there for."""
    made = TINY["PixArtAlphaPipeline"]()
    second, expected = made.run(4), None
    made.pipe.scheduler = first_order(made.pipe.scheduler)
    expected = made.run(4)
    assert float((second - expected).abs().max() / expected.abs().max()) > 1e-3
    assert against_own(made) < 1e-5
