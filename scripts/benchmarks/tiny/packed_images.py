"""Tiny pipelines that make pictures with a flow model on packed latents."""

from __future__ import annotations

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
    picture_vae,
    prompts,
    square,
    text,
)

MMDIT = HEADS | {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": WIDTH}


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
    return make("Flux2Pipeline", call, scheduler=dynamic(), transformer=_flux2_network(True), vae=_flux2_vae())


def flux2_klein() -> Tiny:
    call = prompts() | {"guidance_scale": 4.0} | square(64)
    return make("Flux2KleinPipeline", call, scheduler=dynamic(), transformer=_flux2_network(False), vae=_flux2_vae())


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


def dynamic() -> object:
    return flow_scheduler(use_dynamic_shifting=True)


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
    return make("Krea2Pipeline", call | square(64), scheduler=dynamic(), transformer=transformer)


def ovis() -> Tiny:
    transformer = network(
        "OvisImageTransformer2DModel", in_channels=16, out_channels=16, axes_dims_rope=(4, 4, 8), **MMDIT
    )
    call = prompts() | square(64) | {"guidance_scale": 3.0}
    return make("OvisImagePipeline", call, scheduler=dynamic(), transformer=transformer)


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
    return make("QwenImagePipeline", call, scheduler=dynamic(), transformer=transformer)


def nucleus() -> Tiny:
    transformer = network(
        "NucleusMoEImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        moe_enabled=False,
        num_key_value_heads=1,
        **HEADS,
    )
    call = masked_prompts("{}prompt_embeds_mask") | square(64) | {"guidance_scale": 3.0}
    scheduler = flow_scheduler(use_dynamic_shifting=True)
    return make("NucleusMoEImagePipeline", call, scheduler=scheduler, transformer=transformer)


PACKED_IMAGES = {
    "BriaPipeline": bria,
    "ChromaPipeline": chroma,
    "Flux2KleinPipeline": flux2_klein,
    "Flux2Pipeline": flux2,
    "FluxPipeline": flux,
    "FluxPipeline, true guidance": flux_true_guidance,
    "Krea2Pipeline": krea2,
    "NucleusMoEImagePipeline": nucleus,
    "OvisImagePipeline": ovis,
    "QwenImagePipeline": qwen_image,
}
