"""Tiny pipelines that make pictures and encode their prompts themselves, which is stood in for here."""

from __future__ import annotations

from typing import Any

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
    network,
    picture_vae,
    prompts,
    square,
    text,
    wan_vae,
)
from .packed_images import MMDIT


def seed_of(prompt: Any) -> int:
    return 8 if prompt in ("", [""], None) else 9


def bria_fibo() -> Tiny:
    transformer = network(
        "BriaFiboTransformer2DModel",
        in_channels=4,
        text_encoder_dim=WIDTH // 2,
        axes_dims_rope=(4, 4, 8),
        **MMDIT,
    )
    call = {"prompt": "a cat", "guidance_scale": 3.0} | square(64)
    scheduler = flow_scheduler(use_dynamic_shifting=True)
    made = make(
        "BriaFiboPipeline", call, scheduler=scheduler, transformer=transformer, vae=wan_vae(), text_encoder=StandIn()
    )

    def encode(prompt: Any, num_images_per_prompt: int = 1, **_: Any) -> Any:
        seed = seed_of(prompt)
        layers = tuple(text(LENGTH, WIDTH // 2, seed=seed + i) for i in range(2))
        parts = text(seed=seed), layers, mask()
        return tuple(
            [t.repeat(num_images_per_prompt, 1, 1) for t in p]
            if isinstance(p, tuple)
            else p.repeat(num_images_per_prompt, *[1] * (p.ndim - 1))
            for p in parts
        )

    made.pipe.get_prompt_embeds = encode
    return made


def ernie() -> Tiny:
    transformer = network(
        "ErnieImageTransformer2DModel",
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 4, 8),
    )
    call = {"prompt_embeds": [text()[0]], "negative_prompt_embeds": [text(seed=8)[0]], "guidance_scale": 3.0}
    return make("ErnieImagePipeline", call | square(128), transformer=transformer)


def glm_image() -> Tiny:
    transformer = network(
        "GlmImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
        **HEADS,
    )
    scheduler = flow_scheduler(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear")
    tokens = torch.randint(16, (1, 16), generator=torch.Generator().manual_seed(4))
    call = prompts() | square(64) | {"guidance_scale": 3.0, "prior_token_ids": tokens}
    return make("GlmImagePipeline", call, scheduler=scheduler, transformer=transformer)


def longcat() -> Tiny:
    options = MMDIT | {"in_channels": 64, "pooled_projection_dim": WIDTH, "axes_dims_rope": (4, 4, 8)}
    call = prompts() | square(64) | {"guidance_scale": 3.0, "enable_prompt_rewrite": False, "prompt": None}
    scheduler = flow_scheduler(use_dynamic_shifting=True)
    made = make(
        "LongCatImagePipeline",
        call,
        scheduler=scheduler,
        transformer=network("LongCatImageTransformer2DModel", **options),
    )

    def encode(prompt: Any, num_images_per_prompt: int = 1, prompt_embeds: Any = None) -> Any:
        return prompt_embeds.repeat(num_images_per_prompt, 1, 1), torch.zeros(prompt_embeds.shape[1], 3)

    made.pipe.encode_prompt = encode
    return made


def omnigen() -> Tiny:
    transformer = network(
        "OmniGenTransformer2DModel",
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=1,
        pad_token_id=0,
        vocab_size=32,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        rope_scaling={"long_factor": list(range(1, 9)), "short_factor": list(range(1, 9))},
        pos_embed_max_size=16,
        time_step_dim=8,
    )
    scheduler = flow_scheduler(shift=1.0, invert_sigmas=True, num_train_timesteps=1)
    call = {"prompt": "a cat", "guidance_scale": 3.0} | square(64)
    made = make("OmniGenPipeline", call, scheduler=scheduler, transformer=transformer, vae=picture_vae())
    made.pipe.multimodal_processor = _processor
    _processor.max_image_size = 1024
    return made


def _processor(prompts: Any, *_: Any, num_images_per_prompt: int = 1, height: int = 64, **__: Any) -> Any:
    """Token numbers as the tokenizer of OmniGen gives them: the prompt, then the negative one."""
    from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator

    entries = []
    for _ in range(len(prompts) * num_images_per_prompt):
        one, other = ({"input_ids": ids, "pixel_values": None, "image_sizes": {}} for ids in ([3, 4, 5], [6, 7, 8]))
        entries.append((one, other, None, [height, height]))
    made = OmniGenCollator(pad_token_id=0, hidden_size=32)(entries)
    return made


MORE_IMAGES = {
    "BriaFiboPipeline": bria_fibo,
    "ErnieImagePipeline": ernie,
    "GlmImagePipeline": glm_image,
    "LongCatImagePipeline": longcat,
    "OmniGenPipeline": omnigen,
}
