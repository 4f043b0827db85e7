"""Tiny pipelines that make pictures with a flow model."""

from __future__ import annotations

import torch

from .making import (
    HEADS,
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


def aura_flow() -> Tiny:
    transformer = network(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
        **HEADS,
    )
    return make("AuraFlowPipeline", masked_prompts() | square(64) | {"guidance_scale": 3.0}, transformer=transformer)


def cogview4() -> Tiny:
    transformer = network(
        "CogView4Transformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(8, 8),
        **HEADS,
    )
    scheduler = flow_scheduler(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    call = prompts(16, WIDTH) | square(64) | {"guidance_scale": 3.0, "original_size": (64, 64)}
    return make("CogView4Pipeline", call, scheduler=scheduler, transformer=transformer)


def hidream() -> Tiny:
    transformer = network(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=WIDTH,
        num_routed_experts=2,
        axes_dims_rope=(4, 4, 8),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
        force_inference_output=True,
        **HEADS,
    )
    layers = text(LENGTH, WIDTH).expand(2, 1, LENGTH, WIDTH).reshape(2, 1, LENGTH, WIDTH)
    call = {
        "prompt_embeds_t5": text(),
        "negative_prompt_embeds_t5": text(seed=8),
        "prompt_embeds_llama3": layers,
        "negative_prompt_embeds_llama3": -layers,
        "pooled_prompt_embeds": text(WIDTH),
        "negative_pooled_prompt_embeds": text(WIDTH, seed=8),
        "guidance_scale": 3.0,
    }
    return make("HiDreamImagePipeline", call | square(64), transformer=transformer)


def hunyuan_image() -> Tiny:
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    transformer = network(
        "HunyuanImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        rope_axes_dim=(8, 8),
        patch_size=(1, 1),
        **HEADS,
    )
    call = masked_prompts("{}prompt_embeds_mask")
    call |= {"prompt_embeds_2": text(seed=7), "prompt_embeds_mask_2": mask()}
    call |= {"negative_prompt_embeds_2": text(seed=6), "negative_prompt_embeds_mask_2": mask()}
    guiders = {"guider": AdaptiveProjectedMixGuidance(), "ocr_guider": AdaptiveProjectedMixGuidance()}
    return make("HunyuanImagePipeline", call | square(256), transformer=transformer, **guiders)


def lumina2() -> Tiny:
    transformer = network(
        "Lumina2Transformer2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(32, 32, 32),
        cap_feat_dim=WIDTH,
    )
    return make("Lumina2Pipeline", masked_prompts() | square(64) | {"guidance_scale": 3.0}, transformer=transformer)


def lumina() -> Tiny:
    transformer = network(
        "LuminaNextDiT2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        ffn_dim_multiplier=1.0,
        cross_attention_dim=WIDTH,
    )
    return make("LuminaPipeline", masked_prompts() | square(64) | {"guidance_scale": 3.0}, transformer=transformer)


def prx() -> Tiny:
    transformer = network(
        "PRXTransformer2DModel",
        in_channels=4,
        context_in_dim=WIDTH,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[8, 8],
    )
    call = {"prompt_embeds": text()[0][None], "negative_prompt_embeds": text(seed=8), "guidance_scale": 3.0}
    call |= {"prompt_attention_mask": mask().bool(), "negative_prompt_attention_mask": mask().bool()}
    return make("PRXPipeline", call | square(64) | {"use_resolution_binning": False}, transformer=transformer)


def sana() -> Tiny:
    transformer = network(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=8,
        **HEADS,
    )
    call = masked_prompts() | square(64) | {"guidance_scale": 3.0, "use_resolution_binning": False}
    return make("SanaPipeline", call, transformer=transformer)


def sd3() -> Tiny:
    transformer = network(
        "SD3Transformer2DModel",
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=WIDTH,
        **HEADS,
    )
    call = prompts() | square(64) | {"guidance_scale": 3.0}
    call |= {"pooled_prompt_embeds": text(WIDTH), "negative_pooled_prompt_embeds": text(WIDTH, seed=8)}
    return make("StableDiffusion3Pipeline", call, transformer=transformer)


def z_image() -> Tiny:
    transformer = network(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[64, 32, 32],
    )
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(transformer, name), std=0.1, generator=torch.Generator().manual_seed(1))
    call = {"prompt_embeds": [text()[0]], "negative_prompt_embeds": [text(seed=8)[0]], "guidance_scale": 3.0}
    return make(
        "ZImagePipeline",
        call | square(64),
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        transformer=transformer,
    )


IMAGES = {
    "AuraFlowPipeline": aura_flow,
    "CogView4Pipeline": cogview4,
    "HiDreamImagePipeline": hidream,
    "HunyuanImagePipeline": hunyuan_image,
    "Lumina2Pipeline": lumina2,
    "LuminaPipeline": lumina,
    "PRXPipeline": prx,
    "SanaPipeline": sana,
    "StableDiffusion3Pipeline": sd3,
    "ZImagePipeline": z_image,
}
