"""Tiny pipelines that make pictures with a flow model."""

from __future__ import annotations

import torch

from .making import (
    LENGTH,
    WIDTH,
    Tiny,
    flow_scheduler,
    make,
    mask,
    masked_prompts,
    network,
    picture_vae,
    prompts,
    square,
    text,
)

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
MMDIT = HEADS | {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": WIDTH}


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


def bria() -> Tiny:
    transformer = network("BriaTransformer2DModel", in_channels=16, axes_dims_rope=(4, 4, 8), **MMDIT)
    call = prompts() | square(64) | {"guidance_scale": 3.0}
    return make("BriaPipeline", call, transformer=transformer, vae=picture_vae())


def chroma() -> Tiny:
    transformer = network(
        "ChromaTransformer2DModel",
        in_channels=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
        **MMDIT,
    )
    call = prompts() | square(64) | {"guidance_scale": 3.0}
    call |= {"prompt_attention_mask": mask().float(), "negative_prompt_attention_mask": mask().float()}
    return make("ChromaPipeline", call, transformer=transformer)


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


def flux() -> Tiny:
    transformer = network(
        "FluxTransformer2DModel",
        in_channels=16,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
        **MMDIT,
    )
    call = {"prompt_embeds": text(), "pooled_prompt_embeds": text(WIDTH), "guidance_scale": 3.5} | square(64)
    scheduler = flow_scheduler(use_dynamic_shifting=True)
    return make("FluxPipeline", call, scheduler=scheduler, transformer=transformer)


def flux_true_guidance() -> Tiny:
    made = flux()
    negative = {"negative_prompt_embeds": text(seed=8), "negative_pooled_prompt_embeds": text(WIDTH, seed=8)}
    made.arguments.update(negative | {"true_cfg_scale": 2.0})
    return Tiny(made.pipe, made.arguments, count=made.count, guidance="true_cfg_scale")


def flux2() -> Tiny:
    call = {"prompt_embeds": text(), "guidance_scale": 4.0} | square(64)
    return make("Flux2Pipeline", call, scheduler=_dynamic(), transformer=_flux2_network(True), vae=_flux2_vae())


def flux2_klein() -> Tiny:
    call = prompts() | {"guidance_scale": 4.0} | square(64)
    return make("Flux2KleinPipeline", call, scheduler=_dynamic(), transformer=_flux2_network(False), vae=_flux2_vae())


def _dynamic() -> object:
    return flow_scheduler(use_dynamic_shifting=True)


def _flux2_network(guidance_embeds: bool) -> object:
    return network(
        "Flux2Transformer2DModel",
        in_channels=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
        **MMDIT,
    )


def _flux2_vae() -> object:
    return network(
        "AutoencoderKLFlux2",
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )


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


def krea2() -> Tiny:
    transformer = network(
        "Krea2Transformer2DModel",
        in_channels=16,
        num_layers=1,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 8),
        **HEADS,
    )
    call = {"prompt_embeds": text(LENGTH, 2, WIDTH), "negative_prompt_embeds": text(LENGTH, 2, WIDTH, seed=8)}
    call |= {"prompt_embeds_mask": mask().bool(), "negative_prompt_embeds_mask": mask().bool(), "guidance_scale": 3.0}
    return make("Krea2Pipeline", call | square(64), scheduler=_dynamic(), transformer=transformer)


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


def ovis() -> Tiny:
    transformer = network(
        "OvisImageTransformer2DModel", in_channels=16, out_channels=16, axes_dims_rope=(4, 4, 8), **MMDIT
    )
    call = prompts() | square(64) | {"guidance_scale": 3.0}
    return make("OvisImagePipeline", call, scheduler=_dynamic(), transformer=transformer)


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


def qwen_image() -> Tiny:
    transformer = network(
        "QwenImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        **HEADS,
    )
    call = masked_prompts("{}prompt_embeds_mask") | square(64) | {"true_cfg_scale": 3.0}
    return make("QwenImagePipeline", call, scheduler=_dynamic(), transformer=transformer)


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
    return make("ZImagePipeline", call | square(64), scheduler=_dynamic(), transformer=transformer)


IMAGES = {
    "AuraFlowPipeline": aura_flow,
    "BriaPipeline": bria,
    "ChromaPipeline": chroma,
    "CogView4Pipeline": cogview4,
    "Flux2KleinPipeline": flux2_klein,
    "Flux2Pipeline": flux2,
    "FluxPipeline": flux,
    "FluxPipeline, true guidance": flux_true_guidance,
    "HiDreamImagePipeline": hidream,
    "HunyuanImagePipeline": hunyuan_image,
    "Krea2Pipeline": krea2,
    "Lumina2Pipeline": lumina2,
    "LuminaPipeline": lumina,
    "OvisImagePipeline": ovis,
    "PRXPipeline": prx,
    "QwenImagePipeline": qwen_image,
    "SanaPipeline": sana,
    "StableDiffusion3Pipeline": sd3,
    "ZImagePipeline": z_image,
}
