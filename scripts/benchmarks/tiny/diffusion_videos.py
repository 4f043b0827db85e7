"""Tiny pipelines of video and sound whose networks predict noise or v, or are preconditioned as EDM has it."""

from __future__ import annotations

import torch

from .making import (
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
    picture,
    prompts,
    square,
)


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


def cosmos1() -> Tiny:
    from diffusers import EDMEulerScheduler

    made = cosmos2()
    call = prompts() | square(64) | {"guidance_scale": 3.0, "num_frames": 9}
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    parts = {"transformer": made.pipe.transformer, "safety_checker": StandIn()}
    return make("CosmosTextToWorldPipeline", call, scheduler=scheduler, **parts)


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
    call = {"image": picture(), "num_frames": 2, "max_guidance_scale": 2.5} | square(64)
    parts = {"unet": unet, "vae": vae, "image_encoder": encoder, "feature_extractor": features}
    return make("StableVideoDiffusionPipeline", call, scheduler=scheduler, **parts)


DIFFUSION_VIDEOS = {
    "AllegroPipeline": allegro,
    "CogVideoXPipeline": cogvideox,
    "Cosmos2TextToImagePipeline": cosmos2,
    "CosmosTextToWorldPipeline": cosmos1,
    "LattePipeline": latte,
    "StableAudioPipeline": stable_audio,
    "StableVideoDiffusionPipeline": video_diffusion,
}
