"""Loading teachers from pipelines of diffusers: what they are frozen to, what they are told, what is refused."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_method, instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from solverdistill.noise.paths import Flow
from solverdistill.teachers import diffusers as teachers
from solverdistill.teachers.diffusers.prompts import read_prompts
from solverdistill.teachers.diffusers.schedule import Schedule, make_schedule
from solverdistill.teachers.diffusers.teacher import DiffusersTeacher
from solverdistill.teachers.diffusers.vae import Decoder
from tests import pipeline_folders
from tests.pipeline_folders import PIPELINES, SCALED

PROMPTS = ["a cat", "red dog", "rain"]
CONFIGS = Path(__file__).parents[2] / "configs"
CONFIGURED = {
    "sd15": "stable_diffusion",
    "sd21": "stable_diffusion",
    "sdxl": "sdxl",
    "sd3": "stable_diffusion_3",
    "flux": "flux",
    "dit_256": "dit",
    "dit_512": "dit",
    "pixart": "pixart",
    "ddpm_cifar": "ddpm",
}
TEXT = ("stable_diffusion", "sdxl", "stable_diffusion_3", "flux", "pixart")


def load(name: str, folder: Path | str, **options: Any) -> DiffusersTeacher:
    if name in TEXT:
        options = {"prompts": PROMPTS, **options}
    if name == "flux":
        options = {"latent_size": 8, "text_length": 16, **options}
    return getattr(teachers, {"sdxl": "stable_diffusion"}.get(name, name))(str(folder), **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(3)
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in PIPELINES.items()}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny pipeline to spoil."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / name))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", PIPELINES)
def test_teachers_are_frozen_and_differentiable(name: str, folders: dict[str, Path]) -> None:
    teacher = load(name, folders[name])
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    teacher.train()
    assert not teacher.backbone.net.network.training
    assert not any(value.requires_grad for value in teacher.parameters())
    cond = teacher.draw_cond(torch.Generator().manual_seed(0))
    leaves = [torch.randn(2, *teacher.shape), torch.tensor([0.3, 0.8]), torch.tensor([0.9, 0.5])]
    x, alpha, sigma = (leaf.requires_grad_() for leaf in leaves)
    denoised = teacher(x, alpha, sigma, None if cond is None else cond.expand(2))
    assert denoised.dtype == torch.float32 and denoised.shape == x.shape
    for gradient in torch.autograd.grad(denoised.square().sum(), (x, alpha, sigma)):
        assert bool(torch.isfinite(gradient).all() and (gradient != 0).any())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    json.dumps(teacher.description())
    assert str(folders[name]) not in json.dumps(teacher.description())


@pytest.mark.parametrize("model", CONFIGURED)
def test_every_configuration_states_all_settings_and_loads(model: str, folders: dict[str, Path]) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=[f"model={model}"]).model
    assert set(config) - {"_target_"} == set(inspect.signature(get_method(config._target_)).parameters)
    config.weights, config.running.dtype = str(folders[CONFIGURED[model]]), "float32"
    small = {"weights_dtype": "float32", "variant": None, "prompts": PROMPTS, "latent_size": 8, "text_length": 16}
    config.update({name: value for name, value in small.items() if name in config})
    teacher = instantiate(config)
    assert teacher.name == model and isinstance(teacher, DiffusersTeacher)
    x, alpha, sigma = torch.randn(2, *teacher.shape), torch.full((2,), 0.6), torch.full((2,), 0.5)
    assert bool(torch.isfinite(teacher(x, alpha, sigma)).all())


@pytest.mark.parametrize("name", TEXT)
def test_conditions_are_prompts_by_number(name: str, folders: dict[str, Path]) -> None:
    teacher = load(name, folders[name], negative_prompt="a cat")
    drawn = {int(teacher.draw_cond(torch.Generator().manual_seed(seed))) for seed in range(40)}
    assert drawn == {0, 1, 2}
    x = torch.randn(1, *teacher.shape).expand(4, *teacher.shape)
    alpha, sigma = torch.full((4,), 0.6), torch.full((4,), 0.4)
    first, second, negative, _ = teacher(x, alpha, sigma, torch.tensor([0, 1, -1, 2]))
    torch.testing.assert_close(first, negative)  # the negative prompt is the first prompt here
    assert float((first - second).abs().max()) > 1e-4
    torch.testing.assert_close(teacher(x, alpha, sigma)[0], negative)
    assert teacher.null_cond(torch.tensor([2, 0])).tolist() == [-1, -1]


def test_sdxl_takes_zeros_for_an_empty_negative_prompt_where_its_pipeline_does(copied: Any) -> None:
    folder = copied("sdxl")
    rows = load("sdxl", folder).conditions(None, torch.zeros(1))  # type: ignore[misc]
    assert all(bool((value == 0).all()) for value in rows.values())
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    rows = load("sdxl", folder).conditions(None, torch.zeros(1))  # type: ignore[misc]
    assert all(bool((value != 0).any()) for value in rows.values())


def test_stable_diffusion_3_loads_without_its_t5_encoder(tmp_path: Path) -> None:
    teacher = load("stable_diffusion_3", pipeline_folders.sd3(tmp_path, with_t5=False))
    assert teacher.path == Flow(3.0) and teacher.noise_range == (1.0, 0.0)


def test_float64_stays_float64_and_half_precision_weights_return_float32(folders: dict[str, Path]) -> None:
    x, levels = torch.randn(2, 4, 8, 8), (torch.tensor([0.9, 0.4]), torch.tensor([0.4, 0.9]))
    for name in ("stable_diffusion", "flux", "dit"):
        cond = torch.tensor([0, 1])
        exact = load(name, folders[name])(x, *levels, cond)
        half = load(name, folders[name], weights_dtype="bfloat16", running={"dtype": "bfloat16"})
        assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
        result = half(x, *levels, cond)
        assert result.dtype == torch.float32
        assert float((result - exact).pow(2).mean().sqrt()) < 0.05 * float(exact.pow(2).mean().sqrt())
        double = load(name, folders[name])(x.double(), *(level.double() for level in levels), cond)
        assert double.dtype == torch.float64
        torch.testing.assert_close(double, exact.double(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="weights in bfloat16 need model.running.dtype=bfloat16, not float32"):
        load("dit", folders["dit"], weights_dtype="bfloat16")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_3", "ddpm"])
def test_forward_mode_derivatives_in_the_level(name: str, folders: dict[str, Path]) -> None:
    teacher = load(name, folders[name])
    teacher.backbone.double()
    x, alpha = torch.randn(2, *teacher.shape, dtype=torch.float64), torch.tensor([0.9, 0.4], dtype=torch.float64)
    sigma = torch.tensor([0.5, 0.8], dtype=torch.float64)

    def play(sigma: Tensor) -> Tensor:
        return teacher(x, alpha, sigma)

    tangents = torch.eye(2, dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        together = torch.vmap(lambda tangent: torch.func.jvp(play, (sigma,), (tangent,))[1])(tangents)
    for tangent, result in zip(tangents, together, strict=True):
        difference = (play(sigma + 1e-5 * tangent) - play(sigma - 1e-5 * tangent)) / 2e-5
        # the library's timestep embedding is float32, which limits the difference and not the derivative
        torch.testing.assert_close(result, difference, rtol=0, atol=0.03 * float(difference.abs().max()))


def test_fingerprints_follow_weights_and_prompts_only(copied: Any) -> None:
    folder = copied("stable_diffusion")
    first = load("stable_diffusion", folder)
    moved = Path(shutil.move(folder, folder.parent / "elsewhere"))
    assert load("stable_diffusion", moved, running={"channels_last": True}).fingerprint() == first.fingerprint()
    assert load("stable_diffusion", moved, prompts=["a cat", "red dog", "sun"]).fingerprint() != first.fingerprint()
    pipeline_folders.diffusers().UNet2DConditionModel(**pipeline_folders.UNET, cross_attention_dim=8).save_pretrained(
        moved / "unet"
    )
    assert load("stable_diffusion", moved).fingerprint() != first.fingerprint()


def test_sizes_follow_the_configuration(folders: dict[str, Path]) -> None:
    teacher = load("sdxl", folders["sdxl"], latent_size=[8, 12], noise_range=[0.9, 0.01])
    assert teacher.shape == (4, 8, 12) and teacher.noise_range == (0.9, 0.01)
    assert teacher.description()["size"] == [16, 24]
    shift = load("flux", folders["flux"], latent_size=[64, 32]).path
    assert isinstance(shift, Flow)
    mu = 0.5 + 0.65 * (512 - 256) / (4096 - 256)
    assert shift.shift == pytest.approx(float(torch.tensor(mu).exp()))
    for size in (7, [8], [8.0, 8], 0, "big"):
        with pytest.raises(ValueError, match="model.latent_size=.* must be an integer"):
            load("sdxl", folders["sdxl"], latent_size=size)
    with pytest.raises(ValueError, match=r"model.noise_range=\[0.1, 0.9\] must be"):
        load("dit", folders["dit"], noise_range=[0.1, 0.9])


def test_old_layouts_load(copied: Any) -> None:
    dit = copied("dit")
    edit(dit / "transformer" / "config.json", _class_name="Transformer2DModel")
    assert load("dit", dit).description()["network"] == "DiTTransformer2DModel"
    flat = copied("ddpm")
    for path in (*(flat / "unet").iterdir(), *(flat / "scheduler").iterdir()):
        shutil.move(path, flat / path.name)
    shutil.rmtree(flat / "unet")
    shutil.rmtree(flat / "scheduler")
    teacher = load("ddpm", flat)
    assert teacher.shape == (3, 8, 8)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for key, value in load_file(flat / "diffusion_pytorch_model.safetensors").items():
        for new, before in old.items():
            key = key.replace(new, before)
        weights[key] = value
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, flat / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    x, alpha, sigma = torch.randn(1, 3, 8, 8), torch.tensor([0.6]), torch.tensor([0.8])
    assert torch.equal(load("ddpm", flat)(x, alpha, sigma), teacher(x, alpha, sigma))


def test_prompts_come_from_text_csv_or_a_list(tmp_path: Path) -> None:
    text, table = tmp_path / "prompts.txt", tmp_path / "prompts.csv"
    text.write_text("a cat\n\n  a dog, barking \n", encoding="utf-8")
    table.write_text('id,caption\n1,a cat\n2,"a dog, barking"\n', encoding="utf-8")
    assert read_prompts(str(text)) == read_prompts(str(table)) == read_prompts(["a cat", "a dog, barking", " "])
    assert len(set(read_prompts(None))) == 64
    table.write_text("id,words\n1,a cat\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no column named prompt, caption, text; it has: id, words"):
        read_prompts(str(table))
    with pytest.raises(FileNotFoundError, match="model.prompts=nowhere.txt is no file"):
        read_prompts("nowhere.txt")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts([])


def test_a_hub_id_is_downloaded_in_parts(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(folders["dit"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load("dit", "facebook/DiT-XL-2-256@abc123").name == "dit"
    assert (asked["repository"], asked["revision"]) == ("facebook/DiT-XL-2-256", "abc123")
    assert "transformer/*.safetensors" in asked["allow_patterns"] and "*.fp16*" in asked["ignore_patterns"]
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked["allow_patterns"])
    load("dit", "facebook/DiT-XL-2-256")
    assert asked["revision"] is None


def test_what_is_not_on_this_machine_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(repository: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(FileNotFoundError) as caught:
        load("dit", "facebook/DiT-XL-2-256")
    message = str(caught.value)
    for part in (
        "model.weights=facebook/DiT-XL-2-256",
        "https://huggingface.co/facebook/DiT-XL-2-256",
        "no connection",
    ):
        assert part in message
    assert "\n" not in message and "transformer, scheduler, vae and model_index.json" in message
    with pytest.raises(FileNotFoundError, match="model.weights=./nowhere/at/all is no folder"):
        load("dit", "./nowhere/at/all")


def test_a_missing_library_is_one_sentence(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"this model needs diffusers .* pip install 'solverdistill\[diffusers\]'"):
        load("dit", folders["dit"])


def test_damaged_folders_are_one_sentence_each(copied: Any) -> None:
    folder = copied("dit")
    network, file = folder / "transformer", folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole, config = file.read_bytes(), (network / "config.json").read_text()

    def refused(message: str, error: type[Exception] = ValueError, **options: Any) -> None:
        with pytest.raises(error, match=message) as caught:
            load("dit", folder, **options)
        assert "\n" not in str(caught.value)

    file.write_bytes(whole[: len(whole) // 2])
    refused("file .*transformer.* cannot be read, get it again")
    file.write_bytes(whole)
    edit(network / "config.json", num_layers=3)
    refused("lack or misshape .* tensors, first transformer_blocks.2")
    edit(network / "config.json", num_layers=2, attention_head_dim=4)
    refused("cannot be loaded|lack or misshape")
    edit(network / "config.json", _class_name="SD3Transformer2DModel")
    refused("holds a SD3Transformer2DModel and not a DiTTransformer2DModel; choose the model=")
    (network / "config.json").write_text(config[:40])
    refused("config.json is not JSON")
    (network / "config.json").write_text(config)
    refused("model.weights_dtype 'int8' is unknown", weights_dtype="int8")
    refused("cannot be loaded", variant="fp16")
    shutil.rmtree(folder / "vae")
    with pytest.raises(FileNotFoundError, match="vae has no config.json; copy it from where the model came from"):
        load("dit", folder).decode(torch.zeros(1, 4, 8, 8))
    shutil.rmtree(folder / "scheduler")
    refused("has no scheduler_config.json", FileNotFoundError)
    file.rename(network / "diffusion_pytorch_model.bin")
    refused("has no .safetensors file, and no other kind is read", FileNotFoundError)
    shutil.rmtree(network)
    refused("has no subfolder transformer; is it a diffusers pipeline", FileNotFoundError)


def test_a_tensor_too_many_is_said_and_not_used(copied: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = copied("dit")
    edit(folder / "transformer" / "config.json", num_layers=1)
    load("dit", folder)
    assert "tensors are not used, the first being transformer_blocks.1" in caplog.text


def test_other_kinds_of_networks_are_refused(copied: Any) -> None:
    folder = copied("stable_diffusion")
    options = {**pipeline_folders.UNET, "in_channels": 9}
    network = pipeline_folders.diffusers().UNet2DConditionModel
    network(**options, cross_attention_dim=8).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="takes 9 channels and gives 4; it is not text-to-image"):
        load("stable_diffusion", folder)
    network(**pipeline_folders.UNET, cross_attention_dim=8, num_class_embeds=5).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="networks with num_class_embeds=5 need conditions"):
        load("stable_diffusion", folder)
    shutil.rmtree(folder / "text_encoder")
    network(**pipeline_folders.UNET, cross_attention_dim=8).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="the text encoders in .* cannot be loaded"):
        load("stable_diffusion", folder)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002}, {}, "noise schedule of EDMEulerScheduler is not"),
        ({"beta_schedule": "sigmoid"}, {}, "beta_schedule 'sigmoid' of the scheduler is not supported"),
        ({"trained_betas": [0.1]}, {}, "trained_betas of the scheduler are 1 numbers for 1000 timesteps"),
        ({**SCALED, "prediction_type": "noise"}, {}, "prediction 'noise' is unknown; known: denoised, eps, flow, v"),
        (SCALED, {"prediction": "flow"}, "prediction 'flow' does not go with the scheduler's discrete path"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"prediction": "v"}, "'v' does not go with .* flow path"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, {}, "shifts its times"),
    ],
)
def test_unknown_schedules_are_refused(config: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(config, **options)


def test_flow_sigmas_of_other_schedulers_are_flows() -> None:
    config = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 5.0}
    assert make_schedule(config).path == Flow(5.0)
    linear = {"use_dynamic_shifting": True, "time_shift_type": "linear"}
    schedule = make_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", **linear}, None, 4096)
    assert schedule.path == Flow(1.15)


def test_timesteps_between_and_beyond_the_table() -> None:
    schedule = make_schedule(SCALED)
    s = torch.tensor([0.0005, 0.001, 0.0015, 0.3704, 1.0004, 1.002], dtype=torch.float64)
    told = schedule.timestep(schedule.path.alpha(s), schedule.path.sigma(s))
    torch.testing.assert_close(told, 1000 * s - 1, rtol=0, atol=1e-6)
    single = schedule.timestep(schedule.path.alpha(s).float(), schedule.path.sigma(s).float())
    torch.testing.assert_close(single, told, rtol=0, atol=2e-4)  # levels rounded to float32 move it that much
    alpha = schedule.path.alpha(s).requires_grad_()
    assert torch.autograd.gradcheck(lambda alpha: schedule.timestep(alpha, schedule.path.sigma(s)), alpha)


def test_pure_noise_is_refused_where_the_schedule_does_not_reach_it(folders: dict[str, Path]) -> None:
    for prediction in ("eps", "v"):
        schedule = make_schedule(SCALED, prediction)
        with pytest.raises(ValueError, match=f"this {prediction} network was told pure noise"):
            schedule.timestep(torch.tensor([0.5, 0.0]), torch.ones(2))
    zero = make_schedule({**SCALED, "rescale_betas_zero_snr": True}, "v")
    told = zero.timestep(torch.tensor([0.0, 2.0**-13, 0.5]), torch.ones(3))
    assert told[:2].tolist() == [999.0, 999.0] and told[2] < 999
    flow = load("stable_diffusion_3", folders["stable_diffusion_3"])
    assert bool(torch.isfinite(flow(torch.randn(1, 4, 8, 8), torch.zeros(1), torch.ones(1))).all())


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction 'x0' is unknown"):
        Schedule(Flow(), "x0")


class LocalDecoder(nn.Module):
    """A VAE whose decoder looks at single latent pixels, so that tiles change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 1)
        self.config = SimpleNamespace(scaling_factor=0.5, shift_factor=0.1)
        self.seen: list[tuple[int, ...]] = []

    def decode(self, z: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.seen.append(tuple(z.shape))
        return (nn.functional.interpolate(torch.tanh(self.conv(z)), scale_factor=2),)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (11, 5), (16, 21)])
def test_tiles_join_without_seams_and_are_recomputed(height: int, width: int) -> None:
    vae = LocalDecoder()
    latents = torch.randn(2, 4, height, width, requires_grad=True)
    whole, tiled = Decoder(lambda: vae)(latents), Decoder(lambda: vae, tile=6, overlap=2)
    (expected,) = torch.autograd.grad(whole.square().sum(), latents)
    vae.seen.clear()
    image = tiled(latents)
    torch.testing.assert_close(image, whole)
    assert {shape[0] for shape in vae.seen} == {1} and max(max(shape[2:]) for shape in vae.seen) <= 6
    pieces = len(vae.seen)
    (gradient,) = torch.autograd.grad(image.square().sum(), latents)
    assert len(vae.seen) == 2 * pieces
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        tiled(latents)
    assert len(vae.seen) == 3 * pieces


def test_tiles_must_be_larger_than_their_overlap() -> None:
    with pytest.raises(ValueError, match="overlap by 8, which must be less than their size 8"):
        Decoder(LocalDecoder, tile=8)


def test_latents_decode_as_the_library_does(folders: dict[str, Path]) -> None:
    teacher = load("stable_diffusion_3", folders["stable_diffusion_3"])
    assert not any("vae" in name for name, _ in teacher.named_modules())  # not a part of what is fingerprinted
    latents = torch.randn(2, *teacher.shape, requires_grad=True)
    vae = pipeline_folders.diffusers().AutoencoderKL.from_pretrained(folders["stable_diffusion_3"], subfolder="vae")
    expected = vae.decode(latents / vae.config.scaling_factor + 0.1).sample
    image = teacher.decode(latents)
    torch.testing.assert_close(image, expected)
    assert image.shape == (2, 3, 16, 16)
    ours, theirs = (torch.autograd.grad(value.square().sum(), latents)[0] for value in (image, expected))
    torch.testing.assert_close(ours, theirs)
    pixels = load("ddpm", folders["ddpm"])
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(pixels.decode(x), x)


def test_statistics_of_latents_are_undone() -> None:
    vae = LocalDecoder()
    vae.config = SimpleNamespace(
        scaling_factor=0.5, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]
    )
    latents = torch.randn(1, 4, 4, 4)
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    unscaled = latents * std.view(1, -1, 1, 1) / 0.5 + mean.view(1, -1, 1, 1)
    torch.testing.assert_close(Decoder(lambda: vae)(latents), vae.decode(unscaled, return_dict=False)[0])
