"""Tiny random diffusers pipelines of diffusion models, each with its network as a plain function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.diffusers_networks import CONFIGS
from tests.tiny_pipelines import BATCH, GUIDANCE, SIZE, Case, embeddings, guided, seeded, start_noise, tiny_vae


def unet(dtype: torch.dtype, **options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    shape: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 12,
    }
    return seeded(lambda: UNet2DConditionModel(**{**shape, **options}), dtype)


def make_ddpm(dtype: torch.dtype) -> Case:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    network = seeded(
        lambda: UNet2DModel(
            sample_size=SIZE,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        dtype,
    )
    pipe = DDPMPipeline(network, DDPMScheduler(**CONFIGS["epsilon"]))
    noise = start_noise(dtype, BATCH, 3, SIZE, SIZE)

    def call() -> Tensor:
        final: list[Tensor] = []
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda *a, **k: (out := step(*a, **k), final.append(out.prev_sample))[0]
        with pytest.MonkeyPatch.context() as patch:  # the pipeline takes no noise and clips its images
            patch.setattr("diffusers.pipelines.ddpm.pipeline_ddpm.randn_tensor", lambda *_, **__: noise)
            pipe(batch_size=BATCH, num_inference_steps=pipe.scheduler.nfe, output_type="pt")
        return final[-1]

    return Case(pipe, lambda x, timestep: network(x, timestep).sample, noise, call)


def make_dit(dtype: torch.dtype) -> Case:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    network = seeded(
        lambda: DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,  # learned variance
            num_layers=1,
            sample_size=SIZE,
            num_embeds_ada_norm=1000,
        ),
        dtype,
    )
    vae = tiny_vae(dtype)
    pipe = DiTPipeline(network, vae, DDIMScheduler(**CONFIGS["epsilon"]))
    noise = start_noise(dtype, BATCH, 4, SIZE, SIZE)
    labels = torch.tensor([1, 7, 1000, 1000])

    def call() -> Tensor:
        decoded: list[Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *_, **__: noise)
            decode = vae.decode
            patch.setattr(vae, "decode", lambda z: (decoded.append(z), decode(z))[1])
            pipe([1, 7], GUIDANCE, num_inference_steps=pipe.scheduler.nfe, output_type="np")
        return decoded[0] * vae.config.scaling_factor

    def play(x: Tensor, timestep: Tensor) -> Tensor:
        output = network(torch.cat([x, x]), timestep=timestep[:1].expand(4), class_labels=labels).sample[:, :4]
        conditional, null = output.chunk(2)
        return null + GUIDANCE * (conditional - null)

    return Case(pipe, play, noise, call)


def make_sd(dtype: torch.dtype, kind: str = "epsilon") -> Case:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    network = unet(dtype)
    scheduler = DDIMScheduler(**{**CONFIGS[kind], "clip_sample": False, "steps_offset": 1})
    pipe: Any = StableDiffusionPipeline(
        vae=tiny_vae(dtype),
        text_encoder=None,
        tokenizer=None,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    positive, negative = embeddings(dtype, 5, 12)
    noise = start_noise(dtype, BATCH, 4, SIZE, SIZE)

    def call() -> Tensor:
        return pipe(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            num_inference_steps=pipe.scheduler.nfe,
            guidance_scale=GUIDANCE,
            latents=noise,
            output_type="latent",
        ).images

    @guided
    def play(x: Tensor, timestep: Tensor) -> Any:
        text = torch.cat([negative, positive])
        return network(x, timestep[0], encoder_hidden_states=text).sample.chunk(2)

    return Case(pipe, play, noise, call, kind)


def make_sd_zero_snr(dtype: torch.dtype) -> Case:
    return make_sd(dtype, "v_prediction")


def make_sdxl(dtype: torch.dtype) -> Case:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    network = unet(
        dtype,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 6,
    )
    pipe: Any = StableDiffusionXLPipeline(
        vae=tiny_vae(dtype),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=network,
        scheduler=EulerDiscreteScheduler(**CONFIGS["epsilon"]),
        add_watermarker=False,
    )
    positive, negative = embeddings(dtype, 5, 12)
    pooled, null_pooled = (value[:, 0, :6].contiguous() for value in (positive, negative))
    noise = start_noise(dtype, BATCH, 4, SIZE, SIZE)

    def call() -> Tensor:
        return pipe(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            pooled_prompt_embeds=pooled,
            negative_pooled_prompt_embeds=null_pooled,
            num_inference_steps=pipe.scheduler.nfe,
            guidance_scale=GUIDANCE,
            latents=noise,
            height=SIZE,
            width=SIZE,
            output_type="latent",
        ).images

    @guided
    def play(x: Tensor, timestep: Tensor) -> Any:
        sizes = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=dtype).repeat(2 * BATCH, 1)
        added = {"text_embeds": torch.cat([null_pooled, pooled]), "time_ids": sizes}
        text = torch.cat([negative, positive])
        return network(x, timestep[0], encoder_hidden_states=text, added_cond_kwargs=added).sample.chunk(2)

    return Case(pipe, play, noise, call)


def make_pixart(dtype: torch.dtype) -> Case:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    network = seeded(
        lambda: PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            cross_attention_dim=16,
            sample_size=SIZE,
            caption_channels=12,
            use_additional_conditions=False,
        ),
        dtype,
    )
    pipe: Any = PixArtAlphaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(dtype),
        transformer=network,
        scheduler=DPMSolverMultistepScheduler(**CONFIGS["epsilon"]),
    )
    positive, negative = embeddings(dtype, 5, 12)
    mask = torch.ones(BATCH, 5)
    noise = start_noise(dtype, BATCH, 4, SIZE, SIZE)

    def call() -> Tensor:
        return pipe(
            negative_prompt=None,
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            prompt_attention_mask=mask,
            negative_prompt_attention_mask=mask,
            num_inference_steps=pipe.scheduler.nfe,
            guidance_scale=GUIDANCE,
            latents=noise,
            height=SIZE,
            width=SIZE,
            use_resolution_binning=False,
            output_type="latent",
        ).images

    @guided
    def play(x: Tensor, timestep: Tensor) -> Any:
        output = network(
            x,
            encoder_hidden_states=torch.cat([negative, positive]),
            encoder_attention_mask=torch.cat([mask, mask]),
            timestep=timestep[:1].expand(2 * BATCH),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample[:, :4]
        return output.chunk(2)

    return Case(pipe, play, noise, call)
