"""Tiny pipelines of LTX: given frames that are kept, a timestep per token, and sound beside the video."""

from __future__ import annotations

from typing import Any

import torch

from .making import (
    CLIP,
    HEADS,
    LENGTH,
    WIDTH,
    Tiny,
    flow_scheduler,
    make,
    masked_prompts,
    network,
    picture,
    square,
    text,
)

LTX = HEADS | {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "caption_channels": WIDTH,
    "cross_attention_dim": 32,
}


def ltx() -> Tiny:
    transformer = network("LTXVideoTransformer3DModel", **LTX)
    scheduler = flow_scheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    return make("LTXPipeline", masked_prompts() | square(64) | CLIP, scheduler=scheduler, transformer=transformer)


def ltx_condition() -> Tiny:
    made = ltx()
    vae = _ltx_vae("AutoencoderKLLTXVideo")
    call = masked_prompts() | square(64) | CLIP | {"image": picture(), "num_frames": 9}
    scheduler = flow_scheduler(shift=1.0)  # its pipeline tells the network times from before a shift
    return make("LTXConditionPipeline", call, scheduler=scheduler, transformer=made.pipe.transformer, vae=vae)


def ltx_image() -> Tiny:
    """The first frame is kept, and the scheduler sees the others alone."""
    transformer = network("LTXVideoTransformer3DModel", **LTX)
    call = masked_prompts() | square(64) | CLIP | {"image": picture(), "num_frames": 9}
    scheduler = flow_scheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    vae = _ltx_vae("AutoencoderKLLTXVideo")
    return make("LTXImageToVideoPipeline", call, scheduler=scheduler, transformer=transformer, vae=vae)


def ltx2() -> Tiny:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    shared = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32}
    transformer = network(
        "LTX2VideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        audio_in_channels=4,
        audio_out_channels=4,
        num_layers=2,
        caption_channels=WIDTH,
        rope_double_precision=False,
        **shared,
        **{"audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16},
    )
    torch.manual_seed(0)
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=LENGTH,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=LENGTH,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )
    vae = _ltx_vae(
        "AutoencoderKLLTX2Video", decoder_block_out_channels=(8, 16, 32), decoder_layers_per_block=(1, 1, 1, 1)
    )
    audio_vae = network(
        "AutoencoderKLLTX2Audio",
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    scheduler = flow_scheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    call = masked_prompts() | square(64) | CLIP | {"num_frames": 9, "spatio_temporal_guidance_blocks": [1]}
    call["prompt_embeds"] = text(LENGTH, WIDTH, 2).flatten(2)
    call["negative_prompt_embeds"] = text(LENGTH, WIDTH, 2, seed=8).flatten(2)
    parts = {
        "transformer": transformer,
        "connectors": connectors.eval().requires_grad_(False),
        "audio_vae": audio_vae,
        "vae": vae,
    }
    return make("LTX2Pipeline", call, scheduler=scheduler, **parts)


def _ltx_vae(kind: str, **options: Any) -> Any:
    shape = {
        "latent_channels": 4,
        "block_out_channels": (4, 4, 4, 4),
        "decoder_block_out_channels": (4, 4, 4, 4),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "patch_size": 1,
        "patch_size_t": 1,
    }
    return network(kind, **shape | options)


LTXS = {
    "LTX2Pipeline": ltx2,
    "LTXConditionPipeline": ltx_condition,
    "LTXImageToVideoPipeline": ltx_image,
    "LTXPipeline": ltx,
}
