"""Prompts of a text teacher: read from a file, embedded once, looked up by number from then on."""

from __future__ import annotations

import csv
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from solverdistill.support.files import expand
from solverdistill.teachers.diffusers.folder import DTYPES, TEXT_PARTS, library, read_json

COLUMNS = ("prompt", "caption", "text")
BATCH = 8
log = logging.getLogger(__name__)


def read_prompts(prompts: str | Sequence[str] | None) -> list[str]:
    """Prompts of a text file (one per line), of a CSV file (column prompt, caption or text), or listed.

    Args:
        prompts: File or list; None takes the short list of captions that comes with the package.
    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it holds no prompts.
    """
    if prompts is None:
        text = resources.files("solverdistill.teachers.diffusers").joinpath("prompts.txt").read_text(encoding="utf-8")
        found = text.splitlines()
    elif isinstance(prompts, str):
        path = expand(prompts)
        if not path.is_file():
            raise FileNotFoundError(f"model.prompts={prompts} is no file; give one prompt per line, or a CSV")
        found = _from_csv(path) if path.suffix.lower() == ".csv" else path.read_text(encoding="utf-8").splitlines()
    else:
        found = [str(prompt) for prompt in prompts]
    found = [prompt.strip() for prompt in found if prompt.strip()]
    if not found:
        raise ValueError(f"model.prompts={prompts} holds no prompts")
    return found


def _from_csv(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        columns = reader.fieldnames or []
        column = next((name for name in COLUMNS if name in columns), None)
        if column is None:
            raise ValueError(f"{path} has no column named {', '.join(COLUMNS)}; it has: {', '.join(columns) or 'none'}")
        return [row[column] or "" for row in reader]


class PromptTable(nn.Module):
    """Embeddings of prompts, the last row being that of no prompt.

    Args:
        embeddings: By name, prompts first, the negative prompt last.
    """

    def __init__(self, embeddings: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(embeddings)
        self.count = len(next(iter(embeddings.values()))) - 1
        for name, value in embeddings.items():
            self.register_buffer(name, value)

    def forward(self, cond: Tensor | None, like: Tensor) -> dict[str, Tensor]:
        """Rows of prompts; -1 and None stand for no prompt. cond: int64, shape (batch,)."""
        index = like.new_full((len(like),), -1, dtype=torch.int64) if cond is None else cond
        index = torch.where(index < 0, self.count, index)
        return {name: getattr(self, name)[index] for name in self.names}


class ClassLabels(nn.Module):
    """Class labels of a network whose label number `count` stands for no class."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, cond: Tensor | None, like: Tensor) -> dict[str, Tensor]:
        """Labels; -1 and None stand for no class. cond: int64, shape (batch,)."""
        index = like.new_full((len(like),), -1, dtype=torch.int64) if cond is None else cond
        return {"label": torch.where(index < 0, self.count, index)}


@dataclass(frozen=True)
class Encoder:
    """How a pipeline of diffusers embeds prompts.

    Args:
        pipeline: Name of its class, by the class that model_index.json states; "" stands for all others.
        network: Name of its denoising network, which is not loaded.
        encode: Maps the pipeline, prompts, a device and the number of text tokens (None for the pipeline's own) to
            embeddings by name.
    """

    pipeline: dict[str, str]
    network: str
    encode: Callable[[Any, list[str], torch.device, int | None], dict[str, Tensor]]


def _encode_sd(pipe: Any, prompts: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
    return {"embeds": pipe.encode_prompt(prompts, device, 1, False)[0]}


def _encode_sdxl(pipe: Any, prompts: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipe.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
    return {"embeds": embeds, "pooled": pooled}


def _encode_sd3(pipe: Any, prompts: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
    options = {"device": device, "do_classifier_free_guidance": False}
    embeds, _, pooled, _ = pipe.encode_prompt(prompts, prompts, prompts, **options)
    return {"embeds": embeds, "pooled": pooled}


def _encode_flux(pipe: Any, prompts: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
    embeds, pooled, _ = pipe.encode_prompt(prompts, device=device, max_sequence_length=length or 512)
    return {"embeds": embeds, "pooled": pooled}


def _encode_pixart(pipe: Any, prompts: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
    length = length or (300 if type(pipe).__name__ == "PixArtSigmaPipeline" else 120)
    options = {"device": device, "do_classifier_free_guidance": False, "max_sequence_length": length}
    embeds, mask, _, _ = pipe.encode_prompt(prompts, **options)
    return {"embeds": embeds, "mask": mask}


ENCODERS = {
    "sd": Encoder({"": "StableDiffusionPipeline"}, "unet", _encode_sd),
    "sdxl": Encoder({"": "StableDiffusionXLPipeline"}, "unet", _encode_sdxl),
    "sd3": Encoder({"": "StableDiffusion3Pipeline"}, "transformer", _encode_sd3),
    "flux": Encoder({"": "FluxPipeline"}, "transformer", _encode_flux),
    "pixart": Encoder(
        {"": "PixArtAlphaPipeline", "PixArtSigmaPipeline": "PixArtSigmaPipeline"}, "transformer", _encode_pixart
    ),
}
UNUSED = ("vae", "scheduler", "safety_checker", "feature_extractor", "image_encoder")


@torch.no_grad()
def embed_prompts(
    folder: Path,
    kind: str,
    prompts: list[str],
    negative: str,
    dtype: str = "float32",
    variant: str | None = None,
    length: int | None = None,
) -> PromptTable:
    """Run the text encoders of a pipeline once per prompt and let them go.

    They run on the GPU where there is one. SDXL was trained with zeros for an empty prompt, and its pipeline says so.

    Args:
        folder: The pipeline's folder.
        kind: Key of `ENCODERS`.
        prompts: The prompts.
        negative: What guidance leads away from.
        dtype: Type of the encoders and of their embeddings.
        variant: Variant of the weight files.
        length: Number of text tokens, where the pipeline lets it be chosen; None for its own.
    Raises:
        ValueError: the text encoders cannot be loaded.
    """
    diffusers = library()
    encoder, index = ENCODERS[kind], read_json(folder, "model_index.json")
    cls = encoder.pipeline.get(str(index.get("_class_name")), encoder.pipeline[""])
    absent = dict.fromkeys(name for name in (encoder.network, *UNUSED) if name in index)
    if not (folder / "text_encoder_3").is_dir():  # SD3's largest encoder, which may be left away
        absent |= dict.fromkeys(name for name in ("text_encoder_3", "tokenizer_3") if name in index)
    options = {"torch_dtype": DTYPES[dtype], "variant": variant, "use_safetensors": True, "local_files_only": True}
    if kind == "sd":
        options["requires_safety_checker"] = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)  # older versions know no other name
            pipe = getattr(diffusers, cls).from_pretrained(str(folder), **absent, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the text encoders in {folder} cannot be loaded: {reason}") from None
    if kind == "sd3":  # in place of its largest encoder come zeros, of a width that the pipeline asks its network for
        config = read_json(folder / encoder.network, "config.json")
        pipe.transformer = SimpleNamespace(config=SimpleNamespace(**config))
    device = best_device()
    pipe.set_progress_bar_config(disable=True)
    for name in TEXT_PARTS:
        if isinstance(part := getattr(pipe, name, None), nn.Module):
            part.to(device)
    log.info("embedding %d prompts with the text encoders of %s", len(prompts), folder.name)
    texts, parts = [*prompts, negative], []
    for start in range(0, len(texts), BATCH):
        encoded = encoder.encode(pipe, texts[start : start + BATCH], device, length)
        parts.append({name: value.cpu() for name, value in encoded.items()})
    table = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if kind == "sdxl" and not negative and index.get("force_zeros_for_empty_prompt", True):
        for value in table.values():
            value[-1] = 0
    return PromptTable(table)


def best_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
