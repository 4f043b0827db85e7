"""Folders of diffusers pipelines with tiny random networks, saved as published ones are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}


def diffusers() -> Any:
    import diffusers as library

    return library


def vae(channels: int = 4, **options: Any) -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers().AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=4, latent_channels=channels, sample_size=16, **blocks, **options
    )


def clip(width: int, projected: bool = False) -> Any:
    import transformers

    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = transformers.CLIPTextConfig(
        vocab_size=54, max_position_embeddings=12, projection_dim=width, bos_token_id=52, eos_token_id=53, **sizes
    )
    return cls(config)


def clip_tokenizer() -> Any:
    import transformers

    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12)


def t5(width: int = 16) -> Any:
    import transformers

    sizes = {"d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 30}
    return transformers.T5EncoderModel(transformers.T5Config(**sizes))


def t5_tokenizer() -> Any:
    import transformers

    tokens = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    return transformers.T5Tokenizer(vocab=[(token, -1.0) for token in tokens], extra_ids=0)


def save(folder: Path, parts: dict[str, Any], index: dict[str, Any]) -> Path:
    """Save parts in subfolders and say in model_index.json which classes they are."""
    for name, part in parts.items():
        if part is None:
            index[name] = [None, None]
            continue
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def stable_diffusion(folder: Path, **scheduler: Any) -> Path:
    library = diffusers()
    parts = {
        "unet": library.UNet2DConditionModel(**UNET, cross_attention_dim=8),
        "scheduler": library.DDIMScheduler(**{**SCALED, "steps_offset": 1, "clip_sample": False, **scheduler}),
        "vae": vae(),
        "text_encoder": clip(8),
        "tokenizer": clip_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return save(folder, parts, {"_class_name": "StableDiffusionPipeline"})


def sdxl(folder: Path) -> Path:
    library = diffusers()
    told = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 4 * 6 + 10,
    }
    parts = {
        "unet": library.UNet2DConditionModel(**UNET, cross_attention_dim=18, use_linear_projection=True, **told),
        "scheduler": library.EulerDiscreteScheduler(**SCALED, timestep_spacing="leading", steps_offset=1),
        "vae": vae(),
        "text_encoder": clip(8),
        "text_encoder_2": clip(10, projected=True),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
    }
    return save(folder, parts, {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True})


def sd3(folder: Path, with_t5: bool = True) -> Path:
    library = diffusers()
    sizes = {"sample_size": 8, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    parts = {
        "transformer": library.SD3Transformer2DModel(
            **sizes,
            joint_attention_dim=24,
            caption_projection_dim=16,
            pooled_projection_dim=18,
            out_channels=4,
            pos_embed_max_size=8,
        ),
        "scheduler": library.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": vae(shift_factor=0.1),
        "text_encoder": clip(8, projected=True),
        "text_encoder_2": clip(10, projected=True),
        "text_encoder_3": t5(24) if with_t5 else None,
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer() if with_t5 else None,
    }
    return save(folder, parts, {"_class_name": "StableDiffusion3Pipeline"})


def flux(folder: Path) -> Path:
    library = diffusers()
    sizes = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8}
    parts = {
        "transformer": library.FluxTransformer2DModel(
            **sizes,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        "scheduler": library.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae(shift_factor=0.1),
        "text_encoder": clip(8),
        "text_encoder_2": t5(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
    }
    return save(folder, parts, {"_class_name": "FluxPipeline"})


def dit(folder: Path) -> Path:
    library = diffusers()
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2, "attention_head_dim": 8}
    network = library.DiTTransformer2DModel(**sizes, num_attention_heads=2, num_embeds_ada_norm=1000)
    parts = {"transformer": network, "scheduler": library.DDIMScheduler(clip_sample=False), "vae": vae()}
    return save(folder, parts, {"_class_name": "DiTPipeline"})


def pixart(folder: Path, told_size: bool = True) -> Path:
    library = diffusers()
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2, "attention_head_dim": 12}
    text = {"cross_attention_dim": 24, "caption_channels": 16, "use_additional_conditions": told_size}
    parts = {
        "transformer": library.PixArtTransformer2DModel(**sizes, **text, num_attention_heads=2),
        "scheduler": library.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        "vae": vae(),
        "text_encoder": t5(),
        "tokenizer": t5_tokenizer(),
    }
    return save(folder, parts, {"_class_name": "PixArtAlphaPipeline"})


def ddpm(folder: Path) -> Path:
    library = diffusers()
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = library.UNet2DModel(
        8, 3, 3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8, **blocks
    )
    parts = {"unet": network, "scheduler": library.DDPMScheduler(clip_sample=False)}
    return save(folder, parts, {"_class_name": "DDPMPipeline"})


PIPELINES: dict[str, Callable[[Path], Path]] = {
    "stable_diffusion": stable_diffusion,
    "sdxl": sdxl,
    "stable_diffusion_3": sd3,
    "flux": flux,
    "dit": dit,
    "pixart": pixart,
    "ddpm": ddpm,
}
