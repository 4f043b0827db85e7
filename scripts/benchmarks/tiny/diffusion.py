"""Tiny pipelines of networks that predict noise or v, and of those whose steps are no steps of an ODE."""

from __future__ import annotations

from typing import Any

import torch

from .making import (
    HEADS,
    LENGTH,
    WIDTH,
    Tiny,
    make,
    mask,
    masked_prompts,
    network,
    picture_vae,
    prompts,
    square,
    text,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def unet(**options: Any) -> Any:
    shape = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
    }
    return network("UNet2DConditionModel", **{**shape, **options})


def ddim(**options: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{**BETAS, "clip_sample": False, "steps_offset": 1, **options})


def stable_diffusion() -> Tiny:
    call = prompts() | square(64) | {"guidance_scale": 3.0}
    parts = {"unet": unet(), "vae": picture_vae(), "requires_safety_checker": False}
    return make("StableDiffusionPipeline", call, scheduler=ddim(), **parts)


def stable_diffusion_v() -> Tiny:
    """v prediction down to pure noise (zero terminal SNR)."""
    call = prompts() | square(64) | {"guidance_scale": 3.0, "guidance_rescale": 0.7}
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    parts = {"unet": unet(), "vae": picture_vae(), "requires_safety_checker": False}
    return make("StableDiffusionPipeline", call, scheduler=ddim(**options), **parts)


def sdxl() -> Tiny:
    from diffusers import EulerDiscreteScheduler

    network_options = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    parts = {"unet": unet(**network_options, projection_class_embeddings_input_dim=WIDTH + 48), "vae": picture_vae()}
    call = prompts() | square(64) | {"guidance_scale": 3.0}
    call |= {"pooled_prompt_embeds": text(WIDTH), "negative_pooled_prompt_embeds": text(WIDTH, seed=8)}
    return make("StableDiffusionXLPipeline", call, scheduler=EulerDiscreteScheduler(**BETAS), **parts)


def latent_consistency() -> Tiny:
    from diffusers import LCMScheduler

    call = {"prompt_embeds": text(), "guidance_scale": 3.0} | square(64)
    parts = {"unet": unet(time_cond_proj_dim=8), "vae": picture_vae(), "requires_safety_checker": False}
    return make("LatentConsistencyModelPipeline", call, scheduler=LCMScheduler(**BETAS), **parts)


def pixart(pipeline: str = "PixArtAlphaPipeline") -> Tiny:
    from diffusers import DPMSolverMultistepScheduler

    transformer = network(
        "PixArtTransformer2DModel",
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=32,
        sample_size=8,
        caption_channels=WIDTH,
        use_additional_conditions=False,
        **HEADS,
    )
    call = masked_prompts() | square(64) | {"guidance_scale": 3.0, "use_resolution_binning": False}
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return make(pipeline, call, scheduler=scheduler, transformer=transformer, vae=picture_vae())


def pixart_sigma() -> Tiny:
    return pixart("PixArtSigmaPipeline")


def sana_sprint() -> Tiny:
    from diffusers import SCMScheduler

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
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
        **HEADS,
    )
    call = {"prompt_embeds": text(), "prompt_attention_mask": mask(), "guidance_scale": 4.5} | square(256)
    call |= {"use_resolution_binning": False, "intermediate_timesteps": None}
    scheduler = SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    return make("SanaSprintPipeline", call, scheduler=scheduler, transformer=transformer)


def dit() -> Tiny:
    transformer = network(
        "DiTTransformer2DModel",
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=1000,
        **HEADS,
    )
    made = make(
        "DiTPipeline",
        {"class_labels": [207], "guidance_scale": 3.0},
        scheduler=ddim(),
        transformer=transformer,
        vae=Plain(),
    )
    made.arguments["output_type"] = "np"
    return made


class Plain(torch.nn.Module):
    """A VAE that shows three channels of the latents themselves, for a pipeline that returns pictures alone."""

    dtype, device = torch.float32, torch.device("cpu")

    class config:  # noqa: N801
        scaling_factor = 1.0

    def decode(self, latents: torch.Tensor) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(sample=latents / 50)


def pixels() -> Tiny:
    """A network that predicts the picture itself, so that it stays between -1 and 1, where this pipeline clips it."""
    from diffusers import DDIMScheduler

    net = network(
        "UNet2DModel",
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    made = make("DDIMPipeline", {}, scheduler=DDIMScheduler(clip_sample=False, prediction_type="sample"), unet=net)
    made.arguments["output_type"] = "np"
    return made


def cogview3() -> Tiny:
    from diffusers import CogVideoXDDIMScheduler

    transformer = network(
        "CogView3PlusTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        **HEADS,
    )
    scheduler = CogVideoXDDIMScheduler(
        **BETAS,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=4.0,
        timestep_spacing="trailing",
    )
    call = prompts() | square(64) | {"guidance_scale": 3.0, "original_size": (64, 64)}
    return make("CogView3PlusPipeline", call, scheduler=scheduler, transformer=transformer)


def hunyuan_dit() -> Tiny:
    transformer = network(
        "HunyuanDiT2DModel",
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=2,
        mlp_ratio=2.0,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
        text_len=LENGTH,
        text_len_t5=LENGTH,
        **HEADS,
    )
    call = masked_prompts() | square(64) | {"guidance_scale": 3.0, "use_resolution_binning": False}
    for sign, seed in (("", 7), ("negative_", 6)):
        call |= {f"{sign}prompt_embeds_2": text(seed=seed), f"{sign}prompt_attention_mask_2": mask()}
    parts = {"transformer": transformer, "vae": picture_vae(), "requires_safety_checker": False}
    return make("HunyuanDiTPipeline", call, scheduler=ddim(prediction_type="v_prediction"), **parts)


def animate_diff() -> Tiny:
    adapter = network(
        "MotionAdapter",
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    call = prompts() | square(64) | {"num_frames": 2, "guidance_scale": 3.0}
    parts = {"unet": unet(), "vae": picture_vae(), "motion_adapter": adapter}
    return make("AnimateDiffPipeline", call, scheduler=ddim(steps_offset=0), **parts)


DIFFUSION = {
    "AnimateDiffPipeline": animate_diff,
    "CogView3PlusPipeline": cogview3,
    "DDIMPipeline": pixels,
    "DiTPipeline": dit,
    "HunyuanDiTPipeline": hunyuan_dit,
    "LatentConsistencyModelPipeline": latent_consistency,
    "PixArtAlphaPipeline": pixart,
    "PixArtSigmaPipeline": pixart_sigma,
    "SanaSprintPipeline": sana_sprint,
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionPipeline, v to zero SNR": stable_diffusion_v,
    "StableDiffusionXLPipeline": sdxl,
}
