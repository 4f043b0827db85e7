"""Parts of a pipeline's folder: configurations and networks, from this machine or from the Hugging Face hub.

Only JSON and safetensors files are read; nothing that a folder holds is run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from solverdistill.support.facts import Facts
from solverdistill.support.files import expand
from solverdistill.support.json_files import read_json_object
from solverdistill.teachers.declared import check_declared

HUB = "https://huggingface.co"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
log = logging.getLogger(__name__)


def pipeline_folder(weights: str, parts: tuple[str, ...], variant: str | None = None) -> Path:
    """The folder of a pipeline: `weights` itself, or the hub's copy of it, downloaded or from the hub's cache.

    Args:
        weights: A folder, or a hub id such as "owner/name", "owner/name@revision".
        parts: Subfolders that are needed of it.
        variant: Variant of the weight files to download.
    Raises:
        FileNotFoundError: it is neither here nor can it be downloaded.
    """
    folder = expand(weights)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", weights):
        raise FileNotFoundError(
            f"model.weights={weights} is no folder; give that of a diffusers pipeline, or a hub id like owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, _, revision = weights.partition("@")
    files = ["*.json", "*.txt", "*.model", f"*.{variant}*.safetensors" if variant else "*.safetensors"]
    allowed = [f"{part}/{pattern}" for part in parts for pattern in files]
    skipped = ["*flax*", "*non_ema*", *([] if variant else ["*.fp16*", "*.bf16*"])]
    root = ["model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"]
    try:
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=[*root, *allowed], ignore_patterns=skipped
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise FileNotFoundError(
            f"model.weights={weights} is neither a folder nor in the hub's cache, and cannot be downloaded ({reason}); "
            f"download {', '.join(parts)} and model_index.json from {HUB}/{repository} into a folder and set "
            "model.weights to that folder"
        ) from None
    return Path(found)


def part_folder(folder: Path, *names: str) -> Path:
    """The subfolder of a part under one of its names, or the folder itself where everything lies in one.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    if (folder / "config.json").is_file():
        return folder
    raise FileNotFoundError(f"{folder} has no subfolder {' or '.join(names)}; is it a diffusers pipeline?")


def read_json(folder: Path, *names: str) -> dict[str, Any]:
    """The first of some JSON files of a folder that is there.

    Raises:
        FileNotFoundError: none is there.
        ValueError: it is no JSON object.
    """
    for name in names:
        if (folder / name).is_file():
            return read_json_object(folder / name)
    raise FileNotFoundError(f"{folder} has no {' or '.join(names)}; copy it from where the model came from")


def model_class(config: dict[str, Any]) -> str:
    """Name of the class of a network; DiT and PixArt were saved under a common one once."""
    facts = Facts("config.json", config)
    name = facts.word("_class_name")
    if name == "Transformer2DModel":
        norms = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
        return norms.get(facts.word("norm_type", ""), name)
    return name


def library() -> Any:
    """The diffusers library, with the text encoders that come from transformers.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import diffusers
        import transformers  # noqa: F401 (diffusers offers pipelines only beside it)
    except ImportError as error:
        raise ValueError(f"this model needs diffusers ({error}): pip install 'solverdistill[diffusers]'") from None
    return diffusers


def load_network(folder: Path, known: tuple[str, ...], dtype: str = "float32", variant: str | None = None) -> Any:
    """Load a network from its safetensors files, strictly.

    Args:
        folder: Folder with config.json and the weights.
        known: Classes of diffusers that are expected.
        dtype: Type of its tensors.
        variant: Variant of the weight files, for example "fp16".
    Raises:
        FileNotFoundError: the weights are not there as safetensors.
        ValueError: another architecture, a truncated file, tensors that do not fit.
    """
    diffusers = library()
    if dtype not in DTYPES:
        raise ValueError(f"model.weights_dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    config = read_json(folder, "config.json")
    name = model_class(config)
    if name not in known:
        wanted = " or ".join(known)
        raise ValueError(f"{folder} holds a {name[:60]} and not a {wanted}; choose the model=... that fits it")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} has no .safetensors file, and no other kind is read; have diffusers save the pipeline again"
        )
    cls = getattr(diffusers, name)
    check_declared(folder, config, lambda: cls.from_config(config))
    options = {"torch_dtype": DTYPES[dtype], "variant": variant, "use_safetensors": True, "local_files_only": True}
    return load_strictly(folder, name, lambda: cls.from_pretrained(str(folder), output_loading_info=True, **options))


def load_strictly(folder: Path, name: str, load: Callable[[], tuple[Any, Any]]) -> Any:
    """Load a network with a library that fills missing tensors with random numbers, and refuse it if it did.

    Args:
        folder: Where it lies.
        name: What messages call it.
        load: Gives the network and what the library says about its keys.
    Raises:
        ValueError: a tensor is missing or has another shape, or the files are damaged.
    """
    try:
        network, info = load()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the libraries raise whatever a damaged file leads them to
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the {name} in {folder} cannot be loaded: {reason}") from None
    problems = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if problems:
        raise ValueError(f"the weights in {folder} lack or misshape {len(problems)} tensors, first {problems[0]}")
    if info["unexpected_keys"]:
        unused = sorted(map(str, info["unexpected_keys"]))
        log.warning("%s: %d tensors are not used, the first being %s", folder, len(unused), unused[0])
    return network
