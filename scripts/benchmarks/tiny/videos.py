"""Tiny pipelines that make videos and sound."""

from __future__ import annotations

from typing import Any

import torch

from .making import (
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
    prompts,
    square,
    text,
    wan_vae,
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
        "Cosmos2TextToImagePipeline", call, scheduler=scheduler, transformer=transformer, safety_checker=StandIn()
    )


def cosmos1() -> Tiny:
    from diffusers import EDMEulerScheduler

    made = cosmos2()
    call = prompts() | square(64) | {"guidance_scale": 3.0, "num_frames": 9}
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    parts = {"transformer": made.pipe.transformer, "safety_checker": StandIn()}
    return make("CosmosTextToWorldPipeline", call, scheduler=scheduler, **parts)


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
    vae = _ltx_vae("AutoencoderKLLTXVideo")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    call = masked_prompts() | square(64) | CLIP | {"image": image, "num_frames": 9}
    scheduler = flow_scheduler(shift=1.0)  # its pipeline tells the network times from before a shift
    return make("LTXConditionPipeline", call, scheduler=scheduler, transformer=made.pipe.transformer, vae=vae)


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
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    call = prompts() | square(64) | CLIP | {"image": image}
    return make("WanImageToVideoPipeline", call, transformer=transformer, vae=wan_vae())


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


def stable_audio() -> Tiny:
    from diffusers import EDMDPMSolverMultistepScheduler
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    transformer = network(
        "StableAudioDiTModel",
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        num_key_value_attention_heads=2,
        cross_attention_dim=WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    torch.manual_seed(0)
    projection = StableAudioProjectionModel(text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=32)
    vae = network(
        "AutoencoderOobleck",
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[1, 2],
        sampling_rate=4,
    )
    scheduler = EDMDPMSolverMultistepScheduler(sigma_min=0.3, sigma_max=500, prediction_type="v_prediction")
    call = prompts() | {"attention_mask": mask(), "negative_attention_mask": mask(), "guidance_scale": 3.0}
    parts = {"transformer": transformer, "vae": vae, "projection_model": projection.eval().requires_grad_(False)}
    return make("StableAudioPipeline", call, scheduler=scheduler, **parts)


def video_diffusion() -> Tiny:
    """Stable Video Diffusion: pictures in, v prediction by a network in the scaling of EDM."""
    import transformers
    from diffusers import EulerDiscreteScheduler

    unet = network(
        "UNetSpatioTemporalConditionModel",
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        num_attention_heads=(2, 2),
        cross_attention_dim=WIDTH,
        projection_class_embeddings_input_dim=24,
        addition_time_embed_dim=8,
    )
    vae = network(
        "AutoencoderKLTemporalDecoder",
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        intermediate_size=16,
        patch_size=8,
    )
    encoder = network("CLIPVisionModelWithProjection", "transformers", config=config)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        timestep_type="continuous",
        sigma_min=0.002,
        sigma_max=700.0,
    )
    features = transformers.CLIPImageProcessor(crop_size={"height": 64, "width": 64}, size={"shortest_edge": 64})
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    call = {"image": image, "num_frames": 2, "max_guidance_scale": 2.5} | square(64)
    parts = {"unet": unet, "vae": vae, "image_encoder": encoder, "feature_extractor": features}
    return make("StableVideoDiffusionPipeline", call, scheduler=scheduler, **parts)


VIDEOS = {
    "AllegroPipeline": allegro,
    "AnyFlowPipeline": anyflow,
    "CogVideoXPipeline": cogvideox,
    "Cosmos2TextToImagePipeline": cosmos2,
    "CosmosTextToWorldPipeline": cosmos1,
    "HeliosPipeline": helios,
    "HunyuanVideo15Pipeline": hunyuan_video_15,
    "HunyuanVideoPipeline": hunyuan_video,
    "Kandinsky5T2IPipeline": kandinsky5_image,
    "Kandinsky5T2VPipeline": kandinsky5,
    "LTX2Pipeline": ltx2,
    "LTXConditionPipeline": ltx_condition,
    "LTXPipeline": ltx,
    "LattePipeline": latte,
    "MochiPipeline": mochi,
    "MotifVideoPipeline": motif,
    "SanaVideoPipeline": sana_video,
    "SkyReelsV2DiffusionForcingPipeline": skyreels_forcing,
    "SkyReelsV2Pipeline": skyreels,
    "StableAudioPipeline": stable_audio,
    "StableVideoDiffusionPipeline": video_diffusion,
    "WanImageToVideoPipeline": wan_image,
    "WanPipeline": wan,
    "WanPipeline, a timestep per token": wan_frame_times,
    "WanPipeline, two experts": wan_two_experts,
}
