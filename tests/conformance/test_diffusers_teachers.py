"""Teachers of diffusers pipelines against diffusers itself: its schedulers' estimates and its pipelines' samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.denoisers.wrappers import Guided
from solverdistill.teachers import diffusers as teachers
from solverdistill.teachers.diffusers.schedule import make_schedule
from solverdistill.teachers.diffusers.teacher import DiffusersTeacher
from tests import pipeline_folders
from tests.pipeline_folders import PIPELINES, SCALED

PROMPTS = ["a cat", "red dog", "rain"]
KIND = {"sdxl": "stable_diffusion"}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers.*")
TEXT = ("stable_diffusion", "sdxl", "stable_diffusion_3", "flux", "pixart")


def load(name: str, folder: Path, **options: Any) -> DiffusersTeacher:
    """Load a tiny pipeline through the function of its kind."""
    if name in TEXT:
        options = {"prompts": PROMPTS, **options}
    if name == "flux":
        options = {"latent_size": [8, 4], "text_length": 16, **options}
    return getattr(teachers, KIND.get(name, name))(str(folder), **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    torch.manual_seed(3)
    yield {name: make(tmp_path_factory.mktemp(name)) for name, make in PIPELINES.items()}


def scheduler_of(folder: Path, cls: str, **options: Any) -> Any:
    return getattr(pipeline_folders.diffusers(), cls).from_pretrained(folder, subfolder="scheduler", **options)


def doubled(teacher: DiffusersTeacher) -> DiffusersTeacher:
    """The teacher in float64."""
    teacher.backbone.double()
    return teacher


def raw_output(teacher: DiffusersTeacher, z: Tensor, time: float, cond: Tensor | None) -> Tensor:
    """What the network predicts when it is told a timestep as its library tells it."""
    rows = {} if teacher.conditions is None else teacher.conditions(cond, z)
    return teacher.backbone(z, torch.full((len(z),), time, dtype=z.dtype), rows)


def conditions(teacher: DiffusersTeacher) -> Tensor | None:
    return None if teacher.conditions is None else torch.tensor([0, -1, 2])


@pytest.mark.parametrize(
    "betas",
    [
        SCALED,
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {**SCALED, "rescale_betas_zero_snr": True},
        {"trained_betas": [0.001, 0.01, 0.02, 0.05], "num_train_timesteps": 4},
    ],
)
def test_the_path_is_the_scheduler_s_table(betas: dict[str, Any]) -> None:
    scheduler = pipeline_folders.diffusers().DDIMScheduler(**betas, prediction_type="v_prediction")
    schedule = make_schedule(dict(scheduler.config))
    s = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    expected = scheduler.alphas_cumprod.double()
    if betas.get("rescale_betas_zero_snr"):
        assert expected[-1] == 0
        expected = torch.cat([expected[:-1], torch.tensor([2.0**-24], dtype=torch.float64)])
    torch.testing.assert_close(schedule.path.alpha(s) ** 2, expected, rtol=2e-4, atol=1e-6)
    told = schedule.timestep(schedule.path.alpha(s), schedule.path.sigma(s))
    torch.testing.assert_close(told, torch.arange(schedule.steps, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "dit", "pixart", "ddpm"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_estimates_are_those_of_ddim(name: str, prediction: str, folders: dict[str, Path]) -> None:
    teacher = doubled(load(name, folders[name]))
    kind = {"epsilon": "eps", "v_prediction": "v", "sample": "denoised"}[prediction]
    teacher.prediction = teacher.schedule.prediction = kind
    scheduler = scheduler_of(folders[name], "DDIMScheduler", prediction_type=prediction, clip_sample=False)
    scheduler.alphas_cumprod = torch.exp(2 * teacher.path.table[1])  # type: ignore[attr-defined]
    x, cond = torch.randn(3, *teacher.shape, dtype=torch.float64), conditions(teacher)
    for timestep in (0, 1, 371, 999):
        level = teacher.path.level((timestep + 1) / 1000)
        output = raw_output(teacher, x, float(timestep), cond)
        scheduler.set_timesteps(1000)
        expected = scheduler.step(output, timestep, x).pred_original_sample
        for scale in (1.0, 7.5):  # any scale of the state and its level
            denoised = teacher(scale * x, (scale * level.alpha).expand(3), (scale * level.sigma).expand(3), cond)
            assert denoised.dtype == torch.float64
            torch.testing.assert_close(denoised, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_estimates_are_those_of_euler_in_edm_coordinates(folders: dict[str, Path]) -> None:
    teacher = load("sdxl", folders["sdxl"])
    scheduler = scheduler_of(folders["sdxl"], "EulerDiscreteScheduler")
    scheduler.set_timesteps(timesteps=[999, 500, 3])
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = torch.randn(3, *teacher.shape) * sigma
        output = raw_output(teacher, scheduler.scale_model_input(x, timestep), float(timestep), conditions(teacher))
        expected = scheduler.step(output, timestep, x).pred_original_sample
        denoised = teacher(x, torch.ones(3), sigma.expand(3), conditions(teacher))
        assert denoised.dtype == torch.float32
        torch.testing.assert_close(denoised, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux"])
def test_estimates_are_those_of_flow_matching_euler(name: str, folders: dict[str, Path]) -> None:
    teacher = doubled(load(name, folders[name]))
    scheduler = scheduler_of(folders[name], "FlowMatchEulerDiscreteScheduler")
    mu = 0.5 + 0.65 * (8 - 256) / (4096 - 256) if name == "flux" else None  # 8 tokens of an 8x4 latent
    for s in (1.0, 0.6, 0.05):
        scheduler.set_timesteps(sigmas=[s], mu=mu)
        sigma = scheduler.sigmas[0].double()
        torch.testing.assert_close(teacher.path.sigma(s), sigma, rtol=1e-6, atol=0)
        x = torch.randn(3, *teacher.shape, dtype=torch.float64)
        output = raw_output(teacher, x, float(sigma), conditions(teacher))
        expected = scheduler.step(output, scheduler.timesteps[0], x).prev_sample  # one step to 0 lands on the estimate
        for scale in (1.0, 0.3):
            denoised = teacher(
                scale * x, (scale * (1 - sigma)).expand(3), (scale * sigma).expand(3), conditions(teacher)
            )
            torch.testing.assert_close(denoised, expected.to(denoised), rtol=1e-6, atol=1e-6)


def test_zero_terminal_snr_is_exact_at_pure_noise(tmp_path: Path) -> None:
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    teacher = load("stable_diffusion", pipeline_folders.stable_diffusion(tmp_path, **options))
    scheduler = scheduler_of(tmp_path, "DDIMScheduler", clip_sample=False)
    scheduler.set_timesteps(1000)
    x = torch.randn(3, *teacher.shape)
    output = raw_output(teacher, x, 999.0, conditions(teacher))
    expected = scheduler.step(output, 999, x).pred_original_sample
    alpha = torch.zeros(3, requires_grad=True)
    denoised = teacher(x, alpha, torch.ones(3), conditions(teacher))
    torch.testing.assert_close(denoised, expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(denoised.square().sum(), alpha)
    assert bool(torch.isfinite(gradient).all() and (gradient != 0).all())


def test_zero_terminal_snr_refuses_eps(tmp_path: Path) -> None:
    folder = pipeline_folders.stable_diffusion(tmp_path, rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match=r"zero terminal SNR .* model.prediction=v"):
        load("stable_diffusion", folder)
    assert load("stable_diffusion", folder, prediction="v").prediction == "v"


def play(teacher: DiffusersTeacher, denoiser: Any, levels: list[tuple[float, float]], x: Tensor, cond: Any) -> Tensor:
    """DDIM along given (alpha, sigma), beginning with x."""
    for (alpha, sigma), (alpha_next, sigma_next) in zip(levels, levels[1:], strict=False):
        told = (torch.full((len(x),), value) for value in (alpha, sigma))
        denoised = denoiser(x, *told, cond)
        x = x * (sigma_next / sigma) + denoised * (alpha_next - alpha * sigma_next / sigma)
    return x


def compare(teacher: DiffusersTeacher, pipe: Any, levels: list[tuple[float, float]], **options: Any) -> None:
    """The pipeline's latents after four steps are those of the teacher."""
    noise = torch.randn(1, *teacher.shape)
    latents = pipe._pack_latents(noise, 1, *teacher.shape) if "Flux" in type(pipe).__name__ else noise
    height, width = (2 * size for size in teacher.shape[1:])
    start = levels[0][1] if levels[0][0] == 1 else 1.0
    scale = options.get("guidance_scale", 1.0) if "Flux" not in type(pipe).__name__ else 1.0
    guided = Guided(teacher, scale, teacher.null_cond)
    with torch.no_grad():
        expected = pipe(
            PROMPTS[1],
            num_inference_steps=4,
            latents=latents,
            output_type="latent",
            height=height,
            width=width,
            **options,
        ).images
        result = play(teacher, guided, levels, noise * start, torch.tensor([1]))
    if "Flux" in type(pipe).__name__:
        result = pipe._pack_latents(result, 1, *teacher.shape)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def pipeline(name: str, folder: Path, **options: Any) -> Any:
    pipe = getattr(pipeline_folders.diffusers(), name).from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vp_levels(scheduler: Any, last: float) -> list[tuple[float, float]]:
    cumprod = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps] + [last]
    return [(value**0.5, (1 - value) ** 0.5) for value in cumprod]


def test_samples_are_those_of_the_stable_diffusion_pipeline(folders: dict[str, Path]) -> None:
    folder = folders["stable_diffusion"]
    scheduler = scheduler_of(folder, "DDIMScheduler", clip_sample=False)
    pipe = pipeline("StableDiffusionPipeline", folder, scheduler=scheduler, safety_checker=None)
    scheduler.set_timesteps(4)
    compare(load("stable_diffusion", folder), pipe, vp_levels(scheduler, 1.0), guidance_scale=4.0, eta=0.0)


def test_samples_are_those_of_the_sdxl_pipeline(folders: dict[str, Path]) -> None:
    pipe = pipeline("StableDiffusionXLPipeline", folders["sdxl"])
    scheduler = scheduler_of(folders["sdxl"], "EulerDiscreteScheduler", timestep_spacing="trailing")
    pipe.scheduler = scheduler
    scheduler.set_timesteps(4)
    levels = [(1.0, float(sigma)) for sigma in scheduler.sigmas]
    compare(load("sdxl", folders["sdxl"]), pipe, levels, guidance_scale=4.0)


def test_samples_are_those_of_the_stable_diffusion_3_pipeline(folders: dict[str, Path]) -> None:
    pipe = pipeline("StableDiffusion3Pipeline", folders["stable_diffusion_3"])
    pipe.scheduler.set_timesteps(4)
    levels = [(1 - float(sigma), float(sigma)) for sigma in pipe.scheduler.sigmas]
    compare(load("stable_diffusion_3", folders["stable_diffusion_3"]), pipe, levels, guidance_scale=4.0)


def test_samples_are_those_of_the_flux_pipeline(folders: dict[str, Path]) -> None:
    teacher, pipe = load("flux", folders["flux"], guidance_embedding=2.5), pipeline("FluxPipeline", folders["flux"])
    levels = [(float(teacher.path.alpha(s)), float(teacher.path.sigma(s))) for s in (1.0, 0.75, 0.5, 0.25, 0.0)]
    compare(teacher, pipe, levels, guidance_scale=2.5, max_sequence_length=16)


@pytest.mark.parametrize("told_size", [True, False])
def test_samples_are_those_of_the_pixart_pipeline(told_size: bool, tmp_path: Path) -> None:
    folder = pipeline_folders.pixart(tmp_path, told_size)
    scheduler = scheduler_of(folder, "DDIMScheduler", clip_sample=False, timestep_spacing="leading")
    pipe = pipeline("PixArtAlphaPipeline", folder, scheduler=scheduler)
    if told_size:
        pipe.transformer.register_to_config(sample_size=128)  # where the pipeline looks whether to tell the size
    scheduler.set_timesteps(4)
    options = {"guidance_scale": 4.0, "use_resolution_binning": False, "clean_caption": False}
    compare(load("pixart", folder), pipe, vp_levels(scheduler, 1.0), **options)


def test_samples_are_those_of_the_dit_pipeline(folders: dict[str, Path]) -> None:
    teacher, scheduler = load("dit", folders["dit"]), scheduler_of(folders["dit"], "DDIMScheduler", clip_sample=False)
    pipe = pipeline("DiTPipeline", folders["dit"], scheduler=scheduler)
    images = pipe([7], guidance_scale=4.0, num_inference_steps=4, generator=torch.Generator().manual_seed(1)).images
    noise = torch.randn(1, *teacher.shape, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(4)
    with torch.no_grad():
        guided = Guided(teacher, 4.0, teacher.null_cond)
        latents = play(teacher, guided, vp_levels(scheduler, 1.0), noise, torch.tensor([7]))
        image = teacher.decode(latents)
    pixels = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    expected = pipeline_folders.diffusers().image_processor.VaeImageProcessor.pil_to_numpy(images)
    assert abs(pixels - expected).max() < 0.51 / 255 + 1e-4 and expected.std() > 0.05
    with torch.no_grad():
        other = teacher.decode(play(teacher, guided, vp_levels(scheduler, 1.0), noise, torch.tensor([8])))
    assert float((other - image).abs().max()) > 0.05  # the label matters
