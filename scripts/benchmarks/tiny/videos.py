"""Tiny pipelines that make videos with a flow model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from .making import (
    CLIP,
    HEADS,
    LENGTH,
    WIDTH,
    StandIn,
    Tiny,
    flow_scheduler,
    make,
    mask,
    masked_prompts,
    network,
    picture_vae,
    square,
    text,
    wan_vae,
)


def hunyuan_video() -> Tiny:
    transformer = network(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 4, 8),
        **HEADS,
    )
    call = {"prompt_embeds": text(), "prompt_attention_mask": mask(), "pooled_prompt_embeds": text(WIDTH)}
    return make("HunyuanVideoPipeline", call | square(64) | CLIP, transformer=transformer)


def hunyuan_video_15() -> Tiny:
    from diffusers.guiders import ClassifierFreeGuidance

    transformer = network(
        "HunyuanVideo15Transformer3DModel",
        in_channels=9,
        out_channels=4,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=WIDTH,
        rope_axes_dim=(4, 4, 8),
        task_type="t2v",
        **HEADS,
    )
    vae = network(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=16,
    )
    call = masked_prompts("{}prompt_embeds_mask") | {"prompt_embeds_2": text(seed=7), "prompt_embeds_mask_2": mask()}
    call |= {"negative_prompt_embeds_2": text(seed=6), "negative_prompt_embeds_mask_2": mask(), "num_frames": 5}
    guider = ClassifierFreeGuidance(guidance_scale=3.0)
    return make("HunyuanVideo15Pipeline", call | square(128), transformer=transformer, guider=guider, vae=vae)


def kandinsky5() -> Tiny:
    return _kandinsky5("Kandinsky5T2VPipeline", {"num_frames": 5}, visual_cond=True)


def kandinsky5_image() -> Tiny:
    return _kandinsky5("Kandinsky5T2IPipeline", {}, visual_cond=False)


def _kandinsky5(pipeline: str, extra: dict[str, Any], visual_cond: bool) -> Tiny:
    transformer = network(
        "Kandinsky5Transformer3DModel",
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 8),
        visual_cond=visual_cond,
    )
    lengths = torch.tensor([0, LENGTH], dtype=torch.int32)
    call = {
        "prompt_embeds_qwen": text(),
        "prompt_embeds_clip": text(WIDTH),
        "prompt_cu_seqlens": lengths,
        "negative_prompt_embeds_qwen": text(seed=8),
        "negative_prompt_embeds_clip": text(WIDTH, seed=8),
        "negative_prompt_cu_seqlens": lengths,
        "guidance_scale": 3.0,
    }
    vae = picture_vae() if pipeline.endswith("T2IPipeline") else None
    return make(pipeline, call | square(128) | extra, transformer=transformer, vae=vae)


def mochi() -> Tiny:
    transformer = network(
        "MochiTransformer3DModel",
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        qk_norm="rms_norm",
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        max_sequence_length=LENGTH,
        **HEADS,
    )
    scheduler = flow_scheduler(shift=1.0, invert_sigmas=True)
    call = masked_prompts() | square(64) | CLIP | {"num_frames": 7}
    return make("MochiPipeline", call, scheduler=scheduler, transformer=transformer)


def sana_video() -> Tiny:
    transformer = network(
        "SanaVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=8,
        rope_max_seq_len=32,
        **HEADS,
    )
    call = masked_prompts() | square(64) | {"frames": 5, "guidance_scale": 3.0, "use_resolution_binning": False}
    return make("SanaVideoPipeline", call, transformer=transformer)


def motif() -> Tiny:
    from diffusers.guiders import ClassifierFreeGuidance

    transformer = network(
        "MotifVideoTransformer3DModel",
        in_channels=9,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        text_embed_dim=WIDTH,
        rope_axes_dim=(4, 4, 8),
        **HEADS,
    )
    call = masked_prompts() | square(64) | {"num_frames": 5}
    parts = {"transformer": transformer, "guider": ClassifierFreeGuidance(guidance_scale=3.0), "vae": wan_vae()}
    return make("MotifVideoPipeline", call, **parts)


def easy_animate() -> Tiny:
    transformer = network(
        "EasyAnimateTransformer3DModel",
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=8,
        sample_height=8,
        num_layers=1,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        **HEADS,
    )
    vae = StandIn()
    vae.config = SimpleNamespace(latent_channels=4)
    vae.spatial_compression_ratio, vae.temporal_compression_ratio, vae.cache_mag_vae = 8, 4, False
    call = masked_prompts() | square(64) | {"num_frames": 5, "guidance_scale": 3.0}
    return make("EasyAnimatePipeline", call, transformer=transformer, vae=vae)


VIDEOS = {
    "EasyAnimatePipeline": easy_animate,
    "HunyuanVideo15Pipeline": hunyuan_video_15,
    "HunyuanVideoPipeline": hunyuan_video,
    "Kandinsky5T2IPipeline": kandinsky5_image,
    "Kandinsky5T2VPipeline": kandinsky5,
    "MochiPipeline": mochi,
    "MotifVideoPipeline": motif,
    "SanaVideoPipeline": sana_video,
}
