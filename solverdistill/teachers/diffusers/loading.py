"""One function per kind of pipeline: from its folder to a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solverdistill.teachers.diffusers import backbones
from solverdistill.teachers.diffusers.folder import TEXT_PARTS
from solverdistill.teachers.diffusers.prompts import ClassLabels
from solverdistill.teachers.diffusers.source import Size, Source
from solverdistill.teachers.diffusers.teacher import DiffusersTeacher
from solverdistill.teachers.running import Running

Switches = Running | Mapping[str, Any] | None
Levels = Sequence[float] | None


def stable_diffusion(
    weights: str,
    name: str = "stable_diffusion",
    prompts: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    prediction: str | None = None,
    latent_size: Size = None,
    noise_range: Levels = None,
    weights_dtype: str = "float32",
    variant: str | None = None,
    decoder_tile: int | None = None,
    running: Switches = None,
) -> DiffusersTeacher:
    """Stable Diffusion 1.x, 2.x (eps or v, also with zero terminal SNR) or XL, by what the configuration says.

    SDXL is told the size of the image as original and target size, uncropped. Settings: see the package.

    Raises:
        FileNotFoundError, ValueError: something is missing or does not fit; the message says what.
    """
    parts = ("unet", "scheduler", "vae", *TEXT_PARTS)
    source = Source(weights, parts, "unet", ("UNet2DConditionModel",), weights_dtype, variant, latent_size)
    config, schedule = source.model.config, source.schedule(prediction)
    _refuse(config, "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
    channels = config.out_channels
    if config.in_channels != channels:
        raise ValueError(f"{weights} takes {config.in_channels} channels and gives {channels}; it is not text-to-image")
    size, switches = source.size(config.sample_size, 2 ** (len(config.block_out_channels) - 1)), Running.of(running)
    if config.addition_embed_type == "text_time":
        pixels = size[0] * source.pixels, size[1] * source.pixels
        backbone, kind = backbones.TextUNetXL(source.model, switches, channels, pixels), "sdxl"
    else:
        _refuse(config, "addition_embed_type")
        backbone, kind = backbones.TextUNet(source.model, switches, channels), "sd"
    table = source.prompts(kind, prompts, negative_prompt)
    shape, levels = (channels, *size), _levels(noise_range)
    return DiffusersTeacher(backbone, name, shape, schedule, levels, table, source.decoder(decoder_tile))


def stable_diffusion_3(
    weights: str,
    name: str = "sd3",
    prompts: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    latent_size: Size = None,
    noise_range: Levels = None,
    weights_dtype: str = "float32",
    variant: str | None = None,
    decoder_tile: int | None = None,
    running: Switches = None,
) -> DiffusersTeacher:
    """Stable Diffusion 3 and 3.5: a flow, shifted as its scheduler says; with or without its T5 encoder.

    Settings and errors: see the package and `stable_diffusion`.
    """
    parts = ("transformer", "scheduler", "vae", *TEXT_PARTS)
    source = Source(weights, parts, "transformer", ("SD3Transformer2DModel",), weights_dtype, variant, latent_size)
    config = source.model.config
    size, channels = source.size(config.sample_size, config.patch_size), config.in_channels
    schedule = source.schedule(tokens=size[0] * size[1] // config.patch_size**2)
    backbone = backbones.SD3(source.model, Running.of(running), channels)
    table = source.prompts("sd3", prompts, negative_prompt)
    shape, levels = (channels, *size), _levels(noise_range)
    return DiffusersTeacher(backbone, name, shape, schedule, levels, table, source.decoder(decoder_tile))


def flux(
    weights: str,
    name: str = "flux",
    prompts: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    guidance_embedding: float = 3.5,
    text_length: int | None = None,
    latent_size: Size = None,
    noise_range: Levels = None,
    weights_dtype: str = "float32",
    variant: str | None = None,
    decoder_tile: int | None = None,
    running: Switches = None,
) -> DiffusersTeacher:
    """FLUX.1: a flow on unpacked latents, shifted by the number of image tokens where its scheduler says so.

    `guidance_embedding` is the scale told to FLUX.1-dev; it costs nothing, so leave `guidance` at 1. `text_length` is
    the number of text tokens: 512 for dev and 256 for schnell unless stated. Other settings and errors: see the package
    and `stable_diffusion`.
    """
    parts = ("transformer", "scheduler", "vae", *TEXT_PARTS)
    source = Source(weights, parts, "transformer", ("FluxTransformer2DModel",), weights_dtype, variant, latent_size)
    if source.model.config.in_channels % 4:
        raise ValueError(f"{weights} has tokens of {source.model.config.in_channels} numbers, which is not 2x2 pixels")
    size, channels = source.size(128, 2), source.model.config.in_channels // 4
    schedule = source.schedule(tokens=size[0] * size[1] // 4)
    backbone = backbones.Flux(source.model, Running.of(running), channels, float(guidance_embedding))
    length = text_length or (512 if source.model.config.guidance_embeds else 256)
    table = source.prompts("flux", prompts, negative_prompt, length)
    shape, levels = (channels, *size), _levels(noise_range)
    return DiffusersTeacher(backbone, name, shape, schedule, levels, table, source.decoder(decoder_tile))


def dit(
    weights: str,
    name: str = "dit",
    noise_range: Levels = None,
    weights_dtype: str = "float32",
    variant: str | None = None,
    decoder_tile: int | None = None,
    running: Switches = None,
) -> DiffusersTeacher:
    """DiT on latents with class labels; the learned variance is dropped. Settings, errors: see `stable_diffusion`."""
    parts = ("transformer", "scheduler", "vae")
    source = Source(weights, parts, "transformer", ("DiTTransformer2DModel",), weights_dtype, variant)
    config = source.model.config
    shape = (config.in_channels, *source.size(config.sample_size, config.patch_size))
    backbone = backbones.DiT(source.model, Running.of(running), config.in_channels)
    labels = ClassLabels(config.num_embeds_ada_norm)
    decoder = source.decoder(decoder_tile)
    return DiffusersTeacher(backbone, name, shape, source.schedule(), _levels(noise_range), labels, decoder)


def pixart(
    weights: str,
    name: str = "pixart",
    prompts: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    latent_size: Size = None,
    noise_range: Levels = None,
    weights_dtype: str = "float32",
    variant: str | None = None,
    decoder_tile: int | None = None,
    running: Switches = None,
) -> DiffusersTeacher:
    """PixArt-alpha and -sigma; the learned variance is dropped. Settings and errors: see `stable_diffusion`."""
    parts = ("transformer", "scheduler", "vae", *TEXT_PARTS)
    source = Source(weights, parts, "transformer", ("PixArtTransformer2DModel",), weights_dtype, variant, latent_size)
    config = source.model.config
    size, channels = source.size(config.sample_size, config.patch_size), config.in_channels
    pixels = size[0] * source.pixels, size[1] * source.pixels
    backbone = backbones.PixArt(source.model, Running.of(running), channels, pixels)
    table = source.prompts("pixart", prompts, negative_prompt)
    shape, levels = (channels, *size), _levels(noise_range)
    return DiffusersTeacher(backbone, name, shape, source.schedule(), levels, table, source.decoder(decoder_tile))


def ddpm(
    weights: str,
    name: str = "ddpm",
    prediction: str | None = None,
    noise_range: Levels = None,
    weights_dtype: str = "float32",
    variant: str | None = None,
    running: Switches = None,
) -> DiffusersTeacher:
    """An unconditional U-Net on pixels (``google/ddpm-*``). Settings and errors: see `stable_diffusion`."""
    source = Source(weights, ("unet", "scheduler"), "unet", ("UNet2DModel",), weights_dtype, variant)
    config = source.model.config
    _refuse(config, "class_embed_type", "num_class_embeds")
    shape = (config.in_channels, *source.size(config.sample_size, 2 ** (len(config.block_out_channels) - 1)))
    backbone = backbones.UnconditionalUNet(source.model, Running.of(running), config.in_channels)
    return DiffusersTeacher(backbone, name, shape, source.schedule(prediction), _levels(noise_range))


def _refuse(config: Any, *names: str) -> None:
    for name in names:
        if config.get(name) is not None:
            raise ValueError(f"networks with {name}={config[name]!r} need conditions that this teacher does not give")


def _levels(noise_range: Levels) -> tuple[float, float] | None:
    if noise_range is None:
        return None
    levels = [float(level) for level in noise_range]
    if len(levels) != 2 or levels[0] <= levels[1]:
        raise ValueError(f"model.noise_range={list(noise_range)} must be [largest, smallest] noise level")
    return levels[0], levels[1]
