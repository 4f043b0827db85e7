"""Tiny pipelines that make videos and sound."""

from __future__ import annotations

from typing import Any

import torch

from scripts.benchmarks.tiny.making import (
    LENGTH,
    WIDTH,
    Tiny,
    flow_scheduler,
    make,
    mask,
    masked_prompts,
    network,
    prompts,
    square,
    text,
)

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
WAN = HEADS | {
    "patch_size": (1, 2, 2),
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}
CLIP = {"num_frames": 5, "guidance_scale": 3.0}


def allegro() -> Tiny:
    from diffusers import EulerDiscreteScheduler

    transformer = network(
        "AllegroTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_height=8,
        sample_width=8,
        sample_frames=2,
        caption_channels=WIDTH,
        num_attention_heads=2,
        attention_head_dim=12,
    )
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")
    call = masked_prompts() | square(64) | {"num_frames": 2, "guidance_scale": 3.0}
    return make("AllegroPipeline", call, scheduler=scheduler, transformer=transformer)


def cogvideox() -> Tiny:
    from diffusers import CogVideoXDDIMScheduler

    scheduler = CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
    transformer = network(
        "CogVideoXTransformer3DModel",
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=LENGTH,
        **HEADS,
    )
    call = prompts() | square(64) | {"num_frames": 9, "guidance_scale": 3.0}
    return make("CogVideoXPipeline", call, scheduler=scheduler, transformer=transformer)


def cosmos2() -> Tiny:
    transformer = network(
        "CosmosTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        rope_scale=(1.0, 1.0, 1.0),
        extra_pos_embed_type=None,
        **HEADS,
    )
    scheduler = flow_scheduler(use_karras_sigmas=True)
    call = prompts() | square(64) | {"guidance_scale": 3.0}
    return make(
        "Cosmos2TextToImagePipeline", call, scheduler=scheduler, transformer=transformer, safety_checker=_quiet()
    )


def cosmos1() -> Tiny:
    from diffusers import EDMEulerScheduler

    made = cosmos2()
    call = prompts() | square(64) | {"guidance_scale": 3.0, "num_frames": 9}
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    parts = {"transformer": made.pipe.transformer, "safety_checker": _quiet()}
    return make("CosmosTextToWorldPipeline", call, scheduler=scheduler, **parts)


def _quiet() -> Any:
    """A safety checker that finds nothing."""
    return torch.nn.Identity()


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
    call = masked_prompts("{}prompt_embeds_mask") | {"prompt_embeds_2": text(seed=7), "prompt_embeds_mask_2": mask()}
    call |= {"negative_prompt_embeds_2": text(seed=6), "negative_prompt_embeds_mask_2": mask(), "num_frames": 5}
    guider = ClassifierFreeGuidance(guidance_scale=3.0)
    return make("HunyuanVideo15Pipeline", call | square(64), transformer=transformer, guider=guider)


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
    return make(pipeline, call | square(128) | extra, transformer=transformer)


def latte() -> Tiny:
    from diffusers import DDIMScheduler

    transformer = network(
        "LatteTransformer3DModel",
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=32,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=WIDTH,
        video_length=2,
        **HEADS,
    )
    call = prompts() | square(64) | {"video_length": 2, "guidance_scale": 3.0, "clean_caption": False}
    return make("LattePipeline", call, scheduler=DDIMScheduler(clip_sample=False), transformer=transformer)


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
    vae = network(
        "AutoencoderKLLTXVideo",
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=1,
        patch_size_t=1,
    )
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    call = masked_prompts() | square(64) | CLIP | {"image": image, "num_frames": 9}
    return make("LTXConditionPipeline", call, transformer=made.pipe.transformer, vae=vae)


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


def skyreels() -> Tiny:
    return _skyreels("SkyReelsV2Pipeline", {})


def skyreels_forcing() -> Tiny:
    return _skyreels("SkyReelsV2DiffusionForcingPipeline", {"prompt": None, "base_num_frames": 9})


def _skyreels(pipeline: str, extra: dict[str, Any]) -> Tiny:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    transformer = network("SkyReelsV2Transformer3DModel", **WAN)
    return make(pipeline, prompts() | square(64) | CLIP | extra, scheduler=scheduler, transformer=transformer)


def wan() -> Tiny:
    return make("WanPipeline", prompts() | square(64) | CLIP, transformer=network("WanTransformer3DModel", **WAN))


def wan_two_experts() -> Tiny:
    other = network("WanTransformer3DModel", **WAN)
    for weight in other.parameters():
        weight.mul_(0.9)
    parts = {"transformer": network("WanTransformer3DModel", **WAN), "transformer_2": other, "boundary_ratio": 0.875}
    return make("WanPipeline", prompts() | square(64) | CLIP | {"guidance_scale_2": 2.0}, **parts)


def wan_frame_times() -> Tiny:
    """Wan 2.2 of 5 billion parameters: one timestep per token."""
    transformer = network("WanTransformer3DModel", **WAN)
    return make("WanPipeline", prompts() | square(64) | CLIP, transformer=transformer, expand_timesteps=True)


VIDEOS = {
    "AllegroPipeline": allegro,
    "CogVideoXPipeline": cogvideox,
    "Cosmos2TextToImagePipeline": cosmos2,
    "CosmosTextToWorldPipeline": cosmos1,
    "HunyuanVideo15Pipeline": hunyuan_video_15,
    "HunyuanVideoPipeline": hunyuan_video,
    "Kandinsky5T2IPipeline": kandinsky5_image,
    "Kandinsky5T2VPipeline": kandinsky5,
    "LTXConditionPipeline": ltx_condition,
    "LTXPipeline": ltx,
    "LattePipeline": latte,
    "MochiPipeline": mochi,
    "SanaVideoPipeline": sana_video,
    "SkyReelsV2DiffusionForcingPipeline": skyreels_forcing,
    "SkyReelsV2Pipeline": skyreels,
    "WanPipeline": wan,
    "WanPipeline, a timestep per token": wan_frame_times,
    "WanPipeline, two experts": wan_two_experts,
}
