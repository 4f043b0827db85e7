"""Tiny pipelines of Wan and of those built on it."""

from __future__ import annotations

from typing import Any

from .making import CLIP, HEADS, WIDTH, Tiny, flow_scheduler, make, network, picture, prompts, square, wan_vae

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


def wan_image() -> Tiny:
    transformer = network("WanTransformer3DModel", **WAN | {"in_channels": 12, "image_dim": None})
    call = prompts() | square(64) | CLIP | {"image": picture()}
    return make("WanImageToVideoPipeline", call, transformer=transformer, vae=wan_vae())


def wan_image_times() -> Tiny:
    """Wan 2.2 of 5 billion parameters: the first frame is kept, at a timestep of 0."""
    transformer = network("WanTransformer3DModel", **WAN)
    call = prompts() | square(64) | CLIP | {"image": picture()}
    return make("WanImageToVideoPipeline", call, transformer=transformer, vae=wan_vae(), expand_timesteps=True)


def anyflow() -> Tiny:
    from diffusers import FlowMapEulerDiscreteScheduler

    transformer = network("AnyFlowTransformer3DModel", **WAN)
    call = prompts() | square(64) | CLIP | {"guidance_scale": 1.0}
    scheduler = FlowMapEulerDiscreteScheduler()
    return make("AnyFlowPipeline", call, scheduler=scheduler, transformer=transformer, vae=wan_vae())


def helios() -> Tiny:
    from diffusers import HeliosScheduler

    options = WAN | {"rope_dim": (4, 6, 6), "has_multi_term_memory_patch": True}
    options.pop("rope_max_seq_len")
    scheduler = HeliosScheduler(stage_range=[0, 1], stages=1, use_flow_sigmas=True, scheduler_type="euler")
    call = (
        prompts() | square(64) | CLIP | {"num_frames": 9, "num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1]}
    )
    transformer = network("HeliosTransformer3DModel", **options)
    return make("HeliosPipeline", call, scheduler=scheduler, transformer=transformer, vae=wan_vae())


def skyreels() -> Tiny:
    """Its UniPC rounds times to integers, which a comparison to the last digit would show: Euler does not."""
    return _skyreels("SkyReelsV2Pipeline", flow_scheduler(shift=8.0), {})


def skyreels_forcing() -> Tiny:
    """This pipeline itself rounds times to integers, as UniPC does."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    return _skyreels("SkyReelsV2DiffusionForcingPipeline", scheduler, {"prompt": None, "base_num_frames": 9})


def _skyreels(pipeline: str, scheduler: Any, extra: dict[str, Any]) -> Tiny:
    transformer = network("SkyReelsV2Transformer3DModel", **WAN)
    return make(pipeline, prompts() | square(64) | CLIP | extra, scheduler=scheduler, transformer=transformer)


WANS = {
    "AnyFlowPipeline": anyflow,
    "HeliosPipeline": helios,
    "SkyReelsV2DiffusionForcingPipeline": skyreels_forcing,
    "SkyReelsV2Pipeline": skyreels,
    "WanImageToVideoPipeline": wan_image,
    "WanImageToVideoPipeline, a kept frame": wan_image_times,
    "WanPipeline": wan,
    "WanPipeline, a timestep per token": wan_frame_times,
    "WanPipeline, two experts": wan_two_experts,
}
