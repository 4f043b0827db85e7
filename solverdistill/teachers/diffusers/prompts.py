"""Prompts of a text teacher: read from a file, embedded once, looked up by number from then on."""

from __future__ import annotations

import csv
import inspect
import io
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from solverdistill.support.files import expand
from solverdistill.support.limits import first_sentence, shown
from solverdistill.teachers.declared import check_declared
from solverdistill.teachers.diffusers.folder import DTYPES, TEXT_PARTS, library, load_strictly, read_json

COLUMNS = ("prompt", "caption", "text")
BATCH = 8
log = logging.getLogger(__name__)


def read_prompts(prompts: str | Sequence[str] | None) -> list[str]:
    """Prompts of a text file (one per line), of a CSV file (column prompt, caption or text), or listed.

    Args:
        prompts: File or list; None takes the short list of captions that comes with the package.
    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it holds no prompts, or is not UTF-8; the message names the line.
    """
    if prompts is None:
        text = resources.files("solverdistill.teachers.diffusers").joinpath("prompts.txt").read_text(encoding="utf-8")
        found = text.splitlines()
    elif isinstance(prompts, str):
        path = expand(prompts)
        if not path.is_file():
            raise FileNotFoundError(f"model.prompts={prompts} is no file; give one prompt per line, or a CSV")
        text = _read_text(path)
        found = _from_csv(path, text) if path.suffix.lower() == ".csv" else text.splitlines()
    else:
        found = [str(prompt) for prompt in prompts]
    found = [prompt.strip() for prompt in found if prompt.strip()]
    if not found:
        raise ValueError(f"model.prompts={prompts} holds no prompts")
    return found


def _read_text(path: Path) -> str:
    """Text in UTF-8, with or without a byte order mark."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line} of {path} is not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from None


def _from_csv(path: Path, text: str) -> list[str]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    before = csv.field_size_limit(max(len(text), 1 << 17))  # a field may be as long as the file
    try:
        columns = reader.fieldnames or []
        column = next((name for name in COLUMNS if name in columns), None)
        if column is None:
            named = " ".join(", ".join(columns).split())[:200] or "none"
            raise ValueError(f"{path} has no column named {', '.join(COLUMNS)}; it has: {named}")
        return [row[column] or "" for row in reader]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} of {path} is no line of a CSV file: {error}") from None
    finally:
        csv.field_size_limit(before)


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
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
OPTIONAL = ("text_encoder_3", "tokenizer_3")  # SD3's largest encoder, which may be left away
COMPLETE: dict[str, tuple[str, ...]] = {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": ()}


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
    encoder, index = ENCODERS[kind], read_json(folder, "model_index.json")
    stated = index.get("_class_name")
    cls = encoder.pipeline.get(stated if isinstance(stated, str) else "", encoder.pipeline[""])
    parts = load_text_parts(folder, index, dtype, variant)
    pipe = _assemble(folder, getattr(library(), cls), parts)
    if kind == "sd3":  # in place of its largest encoder come zeros, of a width that the pipeline asks its network for
        config = read_json(folder / encoder.network, "config.json")
        pipe.transformer = SimpleNamespace(config=SimpleNamespace(**config))
    device = best_device()
    pipe.set_progress_bar_config(disable=True)
    for name in TEXT_PARTS:
        if isinstance(part := getattr(pipe, name, None), nn.Module):
            part.to(device)
    log.info("embedding %d prompts with the text encoders of %s", len(prompts), folder.name)
    texts, rows = [*prompts, negative], []
    for start in range(0, len(texts), BATCH):
        encoded = _encode(folder, encoder, pipe, texts[start : start + BATCH], device, length)
        rows.append({name: value.cpu() for name, value in encoded.items()})
    table = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    if kind == "sdxl" and not negative and index.get("force_zeros_for_empty_prompt", True):
        for value in table.values():
            value[-1] = 0
    return PromptTable(table)


def load_text_parts(folder: Path, index: Mapping[str, Any], dtype: str, variant: str | None) -> dict[str, Any]:
    """The text encoders and tokenizers that a pipeline names, strictly: none comes with a random tensor.

    Raises:
        ValueError: one is of a class that is not known, or cannot be loaded.
    """
    import transformers

    found: dict[str, Any] = {}
    for part in TEXT_PARTS:
        entry, place = index.get(part), folder / part
        optional = part in OPTIONAL and not (folder / "text_encoder_3").is_dir()
        if entry is None or optional or (isinstance(entry, list) and entry and entry[-1] is None):
            continue
        name = entry[-1] if isinstance(entry, list) and entry else entry
        known = TOKENIZERS if part.startswith("tokenizer") else TEXT_ENCODERS
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"{folder} names {shown(name)} as its {part}; known: {', '.join(known)}")
        if not place.is_dir():
            raise ValueError(f"the text encoders in {folder} cannot be loaded: there is no folder {part}")
        cls = getattr(transformers, name)
        if known is TOKENIZERS:
            load = partial(cls.from_pretrained, str(place), local_files_only=True)
            found[part] = load_strictly(place, name, lambda load=load: (load(), COMPLETE))
        else:
            found[part] = _load_encoder(place, cls, dtype, variant)
    return found


def _load_encoder(place: Path, cls: Any, dtype: str, variant: str | None) -> Any:
    config = read_json(place, "config.json")
    check_declared(place, config, lambda: cls(cls.config_class.from_dict(config)))
    options = {"torch_dtype": DTYPES[dtype], "use_safetensors": True, "local_files_only": True}
    if variant and any(place.glob(f"*.{variant}*.safetensors")):
        options["variant"] = variant
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)  # older versions know no other name
        load = partial(cls.from_pretrained, str(place), output_loading_info=True, **options)
        return load_strictly(place, cls.__name__, load)


def _assemble(folder: Path, cls: Any, parts: dict[str, Any]) -> Any:
    """A pipeline of its text parts alone, which only embeds prompts."""
    asked = inspect.signature(cls.__init__).parameters
    absent = [name for name in TEXT_PARTS if name in asked and name not in parts and name not in OPTIONAL]
    if absent and asked[absent[0]].default is inspect.Parameter.empty:
        raise ValueError(f"the text encoders in {folder} cannot be loaded: model_index.json names no {absent[0]}")
    needed = (name for name, option in asked.items() if option.default is inspect.Parameter.empty and name != "self")
    arguments = dict.fromkeys(needed) | {name: part for name, part in parts.items() if name in asked}
    if "requires_safety_checker" in asked:
        arguments["requires_safety_checker"] = False
    return cls(**arguments)


def _encode(
    folder: Path, encoder: Encoder, pipe: Any, prompts: list[str], device: torch.device, length: int | None
) -> dict[str, Tensor]:
    try:
        return encoder.encode(pipe, prompts, device, length)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # parts that do not fit each other
        raise ValueError(f"the text encoders in {folder} cannot embed prompts: {first_sentence(error)}") from None


def best_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
