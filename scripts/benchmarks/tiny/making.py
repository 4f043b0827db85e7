"""Make a pipeline of diffusers out of tiny random components, and run it for its latents.

Text encoders and tokenizers are left out wherever a pipeline takes embeddings, and so is the VAE where its latents are
asked for. Weights are seeded and none of them is zero by initialisation, so that every condition and timestep counts.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WIDTH, LENGTH, BATCH = 32, 6, 1
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
CLIP = {"num_frames": 5, "guidance_scale": 3.0}


@dataclass(frozen=True)
class Tiny:
    """A pipeline and what to call it with.

    Args:
        pipe: The pipeline, with a scheduler of its own class.
        arguments: Keyword arguments of its call, without the number of steps, `generator` and `latents`.
        steps: Name of the argument that holds the number of steps.
        count: Name of the argument that multiplies every prompt; None where there is none.
        guidance: Name of the argument that holds the guidance scale; None where there is none.
    """

    pipe: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    steps: str = "num_inference_steps"
    count: str | None = None
    guidance: str | None = "guidance_scale"

    def run(self, steps: int, **changed: Any) -> Tensor:
        """Latents that the pipeline returns, from the same random numbers in every call.

        Args:
            steps: Number of steps.
            changed: Arguments of the call that replace those here.
        """
        call = {**self.arguments, self.steps: steps, **changed}
        if "generator" in inspect.signature(type(self.pipe).__call__).parameters:
            call.setdefault("generator", torch.Generator().manual_seed(5))
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return latents_of(self.pipe(**call))


class StandIn(torch.nn.Module):
    """In place of a text encoder whose work is done elsewhere, and of a safety checker, which finds nothing."""

    dtype, device = torch.float32, torch.device("cpu")

    def check_text_safety(self, prompt: str) -> bool:
        return True


def latents_of(output: Any) -> Tensor:
    """The latents in what a pipeline returns; those of a video where there is sound too."""
    for name in ("images", "frames", "video", "videos", "audios", "sample"):
        if hasattr(output, name):
            output = getattr(output, name)
            break
    else:
        output = output[0]
    while not isinstance(output, Tensor):
        if not isinstance(output, Sequence):
            return torch.as_tensor(output)
        output = torch.stack(list(output)) if isinstance(output[0], Tensor) else output[0]
    return output


def make(pipeline: str, arguments: Mapping[str, Any], *, scheduler: Any = None, **parts: Any) -> Tiny:
    """Build a pipeline; parts that are not given are left out.

    Args:
        pipeline: Name of its class in diffusers.
        arguments: As in `Tiny`.
        scheduler: None takes the flow-matching Euler scheduler.
        parts: Components and plain arguments of the class.
    """
    import diffusers

    kind = getattr(diffusers, pipeline)
    own = inspect.signature(kind.__init__).parameters
    required = {name: None for name, value in own.items() if name != "self" and value.default is value.empty}
    scheduler = flow_scheduler() if scheduler is None else scheduler
    pipe = kind(**{**required, **parts, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    taken = inspect.signature(kind.__call__).parameters
    counts = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
    count = next((name for name in counts if name in taken), None)
    scales = ("true_cfg_scale", "guidance_scale", "distilled_guidance_scale", "max_guidance_scale")
    guidance = next((name for name in scales if name in arguments), None)
    call = {"output_type": "latent", "negative_prompt": None, **arguments}
    return Tiny(pipe, {name: value for name, value in call.items() if name in taken}, count=count, guidance=guidance)


def flow_scheduler(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **options})


def network(name: str, library: str = "diffusers", **options: Any) -> Any:
    """A network with seeded weights, none of them zero by initialisation."""
    kind = getattr(__import__(library), name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            module = kind(**options)
        for weight in module.parameters():
            if weight.numel() and bool((weight == 0).all()):
                torch.nn.init.normal_(weight, std=0.05)
    return module.eval().requires_grad_(False)


def text(*shape: int, seed: int = 9) -> Tensor:
    """Random embeddings. Shape: (1, *shape), or (1, `LENGTH`, `WIDTH`) where none is given."""
    return torch.randn(BATCH, *(shape or (LENGTH, WIDTH)), generator=torch.Generator().manual_seed(seed))


def mask(length: int = LENGTH) -> Tensor:
    """Every token counts. Shape: (1, length)."""
    return torch.ones(BATCH, length, dtype=torch.int64)


def picture() -> Tensor:
    """A picture to begin a video with. Shape: (1, 3, 64, 64)."""
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def square(size: int = 16) -> dict[str, int]:
    return {"height": size, "width": size}


def prompts(*shape: int) -> dict[str, Tensor]:
    """`prompt_embeds` and `negative_prompt_embeds`."""
    return {"prompt_embeds": text(*shape), "negative_prompt_embeds": text(*shape, seed=8)}


def masked_prompts(form: str = "{}prompt_attention_mask") -> dict[str, Tensor]:
    """`prompts` with their masks."""
    return prompts() | {form.format(""): mask(), form.format("negative_"): mask()}


def picture_vae(channels: int = 4, blocks: int = 4) -> Any:
    """An `AutoencoderKL` whose pictures are ``2 ** (blocks - 1)`` times as large as its latents."""
    return network(
        "AutoencoderKL",
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=channels,
        norm_num_groups=2,
        shift_factor=0.1,
    )


def wan_vae(channels: int = 4) -> Any:
    """The VAE of Wan: eight times in space and four times in time."""
    return network(
        "AutoencoderKLWan",
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
