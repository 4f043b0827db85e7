"""Tiny random diffusers pipelines of flow models, each with its network as a plain function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tiny_pipelines import BATCH, GUIDANCE, SIZE, Case, embeddings, guided, seeded, start_noise, tiny_vae


def make_sd3(dtype: torch.dtype) -> Case:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    network = seeded(
        lambda: SD3Transformer2DModel(
            sample_size=SIZE,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=6,
            out_channels=4,
        ),
        dtype,
    )
    pipe: Any = StableDiffusion3Pipeline(
        transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(dtype),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
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
        return network(
            hidden_states=x,
            timestep=timestep[:1].expand(2 * BATCH),
            encoder_hidden_states=torch.cat([negative, positive]),
            pooled_projections=torch.cat([null_pooled, pooled]),
        ).sample.chunk(2)

    return Case(pipe, play, noise, call, "flow_prediction")


def make_flux(dtype: torch.dtype) -> Case:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    network = seeded(
        lambda: FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=6,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        dtype,
    )
    pipe: Any = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(dtype, channels=1),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=network,
    )
    positive, _ = embeddings(dtype, 5, 12)
    pooled = positive[:, 0, :6].contiguous()
    noise = start_noise(dtype, BATCH, (SIZE // 2) ** 2, 4)

    def call() -> Tensor:
        return pipe(
            prompt_embeds=positive,
            pooled_prompt_embeds=pooled,
            num_inference_steps=pipe.scheduler.nfe,
            guidance_scale=3.5,
            latents=noise,
            height=SIZE,
            width=SIZE,
            output_type="latent",
        ).images

    def play(x: Tensor, timestep: Tensor) -> Tensor:
        return network(
            hidden_states=x,
            timestep=timestep.to(dtype) / 1000,
            guidance=torch.full((BATCH,), 3.5),
            pooled_projections=pooled,
            encoder_hidden_states=positive,
            txt_ids=torch.zeros(5, 3, dtype=dtype),
            img_ids=pipe._prepare_latent_image_ids(BATCH, SIZE // 2, SIZE // 2, "cpu", dtype),
        ).sample

    return Case(pipe, play, noise, call, "flow_prediction")
