"""Whole pipelines of diffusers, of tiny random components, as teachers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.benchmarks.teaching import teacher_of, teaches
from scripts.benchmarks.tiny.pipelines import TINY
from solverdistill.denoisers.guidance import make_guided, network_passes
from solverdistill.families import build
from solverdistill.noise.grids import Grid
from solverdistill.teachers import diffusers as dedicated
from solverdistill.teachers import from_pipeline
from solverdistill.teachers.diffusers.pipelines.loading import load_pipeline, pipeline
from solverdistill.training.distilling import load_teacher
from tests import pipeline_folders as folders
from tests.diffusers_networks import assert_close_to_scale

PROMPTS = ["a fox", "b red boat", "c"]
KINDS = {  # dedicated loader, folder, further arguments of the pipeline's call, and of the dedicated loader
    "sd": (dedicated.stable_diffusion, folders.stable_diffusion, {}, {}),
    "sdxl": (dedicated.stable_diffusion, folders.sdxl, {}, {}),
    "sd3": (dedicated.stable_diffusion_3, folders.sd3, {}, {}),
    "flux": (dedicated.flux, folders.flux, {"max_sequence_length": 512}, {"latent_size": 8}),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without the remarks of diffusers and transformers."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.enable_progress_bar()
    logging.set_verbosity(before)


def levels(teacher: Any, *sigmas: float) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) on the network's own scale."""
    sigma = torch.tensor(sigmas)
    return (1 - sigma if teacher.prediction == "flow" else torch.sqrt(1 - sigma**2)), sigma


def noise(teacher: Any, count: int, seed: int = 3) -> Tensor:
    return torch.randn(count, *teacher.shape, generator=torch.Generator().manual_seed(seed))


def packed(latents: Tensor) -> Tensor:
    """Latents as FLUX's pipeline has them: every block of 2x2 is a token."""
    blocks = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5)
    return blocks.flatten(3).flatten(1, 2)


def make_both(kind: str, folder: Path) -> tuple[Any, Any]:
    """A folder through its dedicated loader, and as a whole pipeline, unguided."""
    loader, make, call, own = KINDS[kind]
    torch.manual_seed(0)
    where = str(make(folder))
    old = loader(where, prompts=PROMPTS, **own)
    size = old.shape[-1] * 2
    guidance = 3.5 if kind == "flux" else 1.0
    options: dict[str, Any] = {"height": size, "width": size, "guidance": guidance, "arguments": call}
    return old, pipeline(where, prompts=PROMPTS, weights_dtype="float32", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_dedicated_loader_makes(kind: str, tmp_path: Path) -> None:
    old, new = make_both(kind, tmp_path)
    pack = packed if kind == "flux" else (lambda x: x)
    assert new.path == old.path and new.noise_range == old.noise_range and new.prediction == old.prediction
    x, cond = noise(old, 4), torch.tensor([0, 2, 1, 0])
    alpha, sigma = levels(new, 0.7, 0.7, 0.7, 0.3)
    with torch.no_grad():
        assert_close_to_scale(new(pack(x), alpha, sigma, cond), pack(old(x, alpha, sigma, cond)), 2e-6)
        assert_close_to_scale(new.decode(pack(x[:1])), old.decode(x[:1]).clamp(-1, 1), 1e-6)
        if kind != "flux":
            (_, by_wrapper), (own, by_pipeline) = make_guided(old, 4.0), make_guided(new, 4.0)
            assert_close_to_scale(by_pipeline(x, alpha, sigma, cond), by_wrapper(x, alpha, sigma, cond), 3e-6)
            assert own.own_guidance == 4.0 and own.fingerprint() != new.fingerprint()


def test_text_encoders_run_once_per_prompt(tmp_path: Path) -> None:
    _, teacher = make_both("sd", tmp_path)
    calls: list[int] = []
    encoder = teacher.setting.pipe.text_encoder
    encoder.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    teacher.remember()
    remembered = len(calls)
    assert remembered > 0
    teacher.setting.pipe.text_encoder.to("meta")  # whoever needs the memory may have it
    alpha, sigma = levels(teacher, 0.5, 0.5, 0.5)
    with torch.no_grad():
        together = teacher(noise(teacher, 3), alpha, sigma, torch.tensor([0, 1, 2]))
        alone = [teacher(noise(teacher, 3)[k : k + 1], alpha[:1], sigma[:1], torch.tensor([k])) for k in range(3)]
    assert len(calls) == remembered
    assert_close_to_scale(together, torch.cat(alone), 1e-6)


def test_the_pipeline_stays_as_it_was() -> None:
    tiny = TINY["WanPipeline"]()
    before, scheduler = tiny.run(2), tiny.pipe.scheduler
    attributes = set(vars(tiny.pipe))
    teacher_of(tiny, torch.float32)
    assert tiny.pipe.scheduler is scheduler and set(vars(tiny.pipe)) == attributes
    assert torch.equal(tiny.run(2), before)


def test_random_numbers_of_the_process_are_not_drawn() -> None:
    tiny, state = TINY["StableDiffusion3Pipeline"](), torch.get_rng_state()
    teacher = teacher_of(tiny, torch.float32)
    teacher(noise(teacher, 2), *levels(teacher, 0.4, 0.8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "QwenImagePipeline", "ZImagePipeline"])
def test_prompts_may_be_embeddings_and_differ_in_a_batch(name: str) -> None:
    tiny = TINY[name]()
    given = {key: value for key, value in tiny.arguments.items() if "embeds" in key or "mask" in key}
    shared = {key: value for key, value in tiny.arguments.items() if key not in given}

    def turned(value: Any) -> Any:
        return [turned(item) for item in value] if isinstance(value, list) else value.flip(-1)

    other = {key: turned(value) if "embeds" in key else value for key, value in given.items()}
    teacher = from_pipeline(tiny.pipe, prompts=[given, other], **shared)
    assert teacher.conditions.count == 2 and teacher.replay.rules is not None
    x, (alpha, sigma) = noise(teacher, 1).repeat(3, *[1] * len(teacher.shape)), levels(teacher, 0.6, 0.6, 0.6)
    with torch.no_grad():
        first, second, again = teacher(x, alpha, sigma, torch.tensor([0, 1, 0]))
        alone = from_pipeline(tiny.pipe, **shared, **other)(x[:1], alpha[:1], sigma[:1])[0]
    assert_close_to_scale(again, first, 1e-6)
    assert_close_to_scale(second, alone, 2e-6)
    assert float((second - first).abs().max()) > 1e-3


def test_samples_at_other_levels_do_not_disturb_each_other() -> None:
    teacher = teacher_of(TINY["WanPipeline, two experts"](), torch.float32)
    x, (alpha, sigma) = noise(teacher, 4), levels(teacher, 0.95, 0.2, 0.95, 0.5)
    with torch.no_grad():
        together = teacher(x, alpha, sigma)
        alone = torch.cat([teacher(x[k : k + 1], alpha[k : k + 1], sigma[k : k + 1]) for k in range(4)])
    assert_close_to_scale(together, alone, 2e-6)


def test_both_experts_are_networks_of_the_teacher_and_take_turns() -> None:
    teacher = teacher_of(TINY["WanPipeline, two experts"](), torch.float32)
    ran: list[str] = []
    for name, network in teacher.networks.items():
        network.register_forward_pre_hook(lambda module, inputs, name=name: ran.append(name))
    alpha, sigma = levels(teacher, 0.97, 0.3)
    with torch.no_grad():
        teacher(noise(teacher, 2), alpha, sigma)
    assert set(teacher.networks) == {"transformer", "transformer_2"} == set(ran)


def test_guidance_is_the_pipelines_own_and_passes_are_counted_at_the_network() -> None:
    teacher = teacher_of(TINY["WanPipeline"](), torch.float32)
    assert teacher.own_guidance == 3.0
    program = build("ddim", Grid("flow_shift", 3, 1.0, 0.1, shift=3.0), "flow").program({})
    for scale, rows in ((1.0, 1), (6.0, 2)):
        drawn, guided = make_guided(teacher, scale)
        assert drawn is guided.denoiser and isinstance(drawn, type(teacher))
        with torch.no_grad():
            guided(noise(teacher, 2), *levels(teacher, 0.5, 0.5))
        assert network_passes(guided, program) == 3 * rows
    assert make_guided(teacher, None)[0] is teacher
    with pytest.raises(ValueError, match="only a number can be given"):
        make_guided(teacher, {"scale": [1.0, 5.0]})
    with pytest.raises(ValueError, match="guides itself"):
        teacher.null_cond(None)


def test_a_guider_is_set_in_the_view_alone() -> None:
    tiny = TINY["HunyuanVideo15Pipeline"]()
    own = tiny.pipe.guider
    x = None
    outputs = []
    for scale in (1.0, 5.0):
        teacher = teacher_of(tiny, torch.float32, guidance=scale)
        x = noise(teacher, 1) if x is None else x
        with torch.no_grad():
            outputs.append(teacher(x, *levels(teacher, 0.5)))
        assert teacher.own_guidance == scale
    assert tiny.pipe.guider is own and float((outputs[0] - outputs[1]).abs().max()) > 1e-4


def test_a_guider_of_some_steps_is_refused() -> None:
    tiny = TINY["HunyuanVideo15Pipeline"]()
    tiny.pipe.guider = tiny.pipe.guider.new(stop=0.5)
    with pytest.raises(ValueError, match="interval 0 to 0.5 of its ClassifierFreeGuidance"):
        teacher_of(tiny, torch.float32)


def test_true_guidance_needs_a_negative_prompt() -> None:
    tiny = TINY["QwenImagePipeline"]()
    positive = {k: v for k, v in tiny.arguments.items() if not k.startswith("negative") and k != "true_cfg_scale"}
    assert from_pipeline(tiny.pipe, **positive).own_guidance == 1.0  # the call's default of 4 does nothing
    with pytest.raises(ValueError, match="none is given: add negative_prompt"):
        from_pipeline(tiny.pipe, guidance=4.0, **positive)


def test_an_untold_time_is_told_as_the_pipeline_tells_it() -> None:
    """CogView4 shifts its levels and tells its network unshifted times; every own step is compared when it is made."""
    teacher = teacher_of(TINY["CogView4Pipeline"](), torch.float32)
    assert teacher.convention.told_shift != 1.0
    alpha, sigma = levels(teacher, 0.5)
    time, _ = teacher.convention.told(alpha.double(), sigma.double())
    k = teacher.convention.told_shift
    assert float(k * time / 1000 / (1 + (k - 1) * time / 1000)) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "changed", "sentence"),
    [
        ("Lumina2Pipeline", {"cfg_trunc_ratio": 0.3}, "guides by the number of the step"),
        ("StableDiffusion3Pipeline", {"skip_guidance_layers": [0]}, "skip_guidance_layers .* by the number"),
        ("LatentConsistencyModelPipeline", {}, "no steps of an ODE"),
        ("StableDiffusion3Pipeline", {"no_such": 1}, "takes no argument no_such"),
        ("StableDiffusion3Pipeline", {"latents": None}, "the teacher's to give"),
        ("StableDiffusion3Pipeline", {"prompts": PROMPTS}, "are both given"),
        ("StableDiffusion3Pipeline", {"guidance_argument": "strength"}, "has no argument strength"),
        ("FluxPipeline", {"noise_range": [0.1, 0.9]}, "must be .largest, smallest."),
        ("SanaSprintPipeline", {}, "SCMScheduler"),
        ("DiTPipeline", {}, "draws its first noise itself"),
    ],
)
def test_what_resists_is_refused_in_a_sentence(name: str, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        teacher_of(TINY[name](), torch.float32, **changed)


def test_a_folder_is_a_model_of_the_configuration(tmp_path: Path) -> None:
    folders.stable_diffusion(tmp_path)
    settings = {"weights": str(tmp_path), "prompts": PROMPTS, "height": 16, "width": 16, "weights_dtype": "float32"}
    teacher = load_teacher("diffusers_pipeline", settings)
    assert teacher.own_guidance == 7.5 and teacher.shape == (4, 8, 8)  # the pipeline's own scale
    drawn = [int(teacher.draw_cond(torch.Generator().manual_seed(seed))) for seed in range(20)]
    assert set(drawn) == {0, 1, 2}


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_network_without_all_of_its_weights_is_refused(part: str, tmp_path: Path) -> None:
    folders.stable_diffusion(tmp_path)
    (file,) = (tmp_path / part).glob("*.safetensors")
    tensors = load_file(file)
    lost = sorted(name for name in tensors if name.endswith("weight"))[0]
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lack or misshape 1 tensors, first .*{lost.rsplit('.', 2)[-2]}"):
        load_pipeline(str(tmp_path), "float32")


def test_frames_of_a_video_are_those_of_the_pipeline() -> None:
    from diffusers import AutoencoderKLWan

    tiny = TINY["WanPipeline"]()
    torch.manual_seed(0)
    sizes = {"base_dim": 3, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    latent = {"latents_mean": [0.1] * 4, "latents_std": [0.9] * 4, "temperal_downsample": [False, True, True]}
    tiny.pipe.vae = AutoencoderKLWan(**sizes, **latent).eval()
    teacher, last = teacher_of(tiny, torch.float32), tiny.run(2)
    frames = torch.as_tensor(tiny.run(2, output_type="pt"))
    frames = frames if frames.ndim == 5 else frames[None]
    chosen = [round(k * (frames.shape[1] - 1) / 3) for k in range(4)]
    wanted = torch.cat([frames[:, k] for k in chosen], dim=-1)
    assert_close_to_scale(teacher.decode(last), 2 * wanted - 1, 1e-5)


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    folder = folders.stable_diffusion(tmp_path)
    index = folder / "model_index.json"
    written = index.read_text()
    index.write_text(written.replace('"_class_name"', '"ignored"'))
    with pytest.raises(ValueError, match="no pipeline of the installed diffusers"):
        pipeline(str(folder))
    index.write_text(written.replace('"diffusers", "UNet2DConditionModel"', '"my_code", "Network"'))
    with pytest.raises(ValueError, match="unet of .* is a Network of my_code"):
        pipeline(str(folder))


@pytest.mark.parametrize("name", ["Flux2Pipeline", "WanPipeline, two experts", "AuraFlowPipeline", "LTX2Pipeline"])
def test_gradients_are_those_of_differences(name: str) -> None:
    found = teaches(TINY[name])
    assert found.teaches and found.state < 1e-3 and found.level < 1e-2, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["QwenImagePipeline", "ZImagePipeline", "StableDiffusion3Pipeline", "CogView4Pipeline", "SanaPipeline"]
)
def test_gradients_of_further_pipelines(name: str) -> None:
    found = teaches(TINY[name])
    assert found.teaches and found.level < 1e-2, found
