"""What a pipeline as a teacher costs beside its network: `python -m scripts.benchmarks.pipeline_overhead`.

A pipeline of SD3's kind, with a network of about a billion weights or a tiny one, is evaluated through
`from_pipeline`. The network's own time is measured inside of the same calls, so that noise of the machine cancels; on a
GPU both are waited for. Beside it stands what the pipeline's own loop takes per step.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from solverdistill.teachers import from_pipeline

from .tiny.making import make, network, picture_vae, square

SIZES = {  # layers and heads of 64 channels each, pixels along a side: few, so that a CPU comes to an end
    "tiny": (2, 2, 64),
    "billion": (12, 24, 64),
}


def build(size: str, device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """A pipeline of Stable Diffusion 3's kind without text encoders, and what to call it with."""
    layers, heads, pixels = SIZES[size]
    transformer = network(
        "SD3Transformer2DModel",
        sample_size=pixels // 8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=64,
        caption_projection_dim=64 * heads,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        pos_embed_max_size=192,
    ).to(device, dtype)
    embeds = torch.randn(2, 1, 333, 4096).to(device, dtype)
    pooled = torch.randn(2, 1, 2048).to(device, dtype)
    call = {
        "prompt_embeds": embeds[0],
        "negative_prompt_embeds": embeds[1],
        "pooled_prompt_embeds": pooled[0],
        "negative_pooled_prompt_embeds": pooled[1],
        "guidance_scale": 5.0,
    }
    tiny = make("StableDiffusion3Pipeline", call | square(pixels), transformer=transformer, vae=picture_vae(16))
    return tiny.pipe, tiny.arguments


@contextmanager
def timed(module: torch.nn.Module, wait: Callable[[], None]) -> Iterator[list[float]]:
    """Seconds that a module takes, one entry per call."""
    seconds: list[float] = []
    forward = module.forward

    def call(*positional: Any, **named: Any) -> Any:
        wait()
        begin = time.perf_counter()
        result = forward(*positional, **named)
        wait()
        seconds.append(time.perf_counter() - begin)
        return result

    module.forward = call  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield seconds
    finally:
        module.forward = forward  # pyright: ignore[reportAttributeAccessIssue]


def measure(size: str, device: str, dtype: torch.dtype, batch: int, repeats: int) -> str:
    """One row of the table."""
    wait: Callable[[], None] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    pipe, call = build(size, device, dtype)
    teacher = from_pipeline(pipe, **call)
    x = torch.randn(batch, *teacher.shape, device=device)
    alpha = torch.full((batch,), 0.4, device=device)
    with torch.no_grad():
        teacher(x, alpha, 1 - alpha)
        with timed(pipe.transformer, wait) as inside:
            begin = time.perf_counter()
            for _ in range(repeats):
                teacher(x, alpha, 1 - alpha)
            wait()
            whole = (time.perf_counter() - begin) / repeats
        own = sum(inside) / repeats
        with timed(pipe.transformer, wait) as inside:
            begin = time.perf_counter()
            pipe(**call, num_inference_steps=max(repeats, 2))
            wait()
            loop = (time.perf_counter() - begin - sum(inside)) / max(repeats, 2)
    weights = sum(value.numel() for value in pipe.transformer.parameters())
    share = (whole - own) / own
    cells = (f"{weights / 1e9:.3f}", str(batch), *(f"{1e3 * v:.2f}" for v in (own, whole - own, loop)), f"{share:.2%}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--repeats", type=int, default=None)
    options = parser.parse_args()
    name = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    warnings.filterwarnings("ignore")
    print(f"{options.device}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| billion weights | batch | network, ms | beside it, ms | the pipeline's own loop, ms per step | share |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        slow = size == "billion" and not options.device.startswith("cuda")
        repeats = options.repeats or (1 if slow else 30)
        for batch in (1,) if slow else (1, 2):
            print(measure(size, options.device, getattr(torch, name), batch, repeats), flush=True)


if __name__ == "__main__":
    main()
