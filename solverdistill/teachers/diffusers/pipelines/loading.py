"""`model=diffusers_pipeline`: from a pipeline's folder, or the hub, to a teacher."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from solverdistill.teachers.diffusers.folder import DTYPES, library, load_strictly, pipeline_folder, read_json
from solverdistill.teachers.diffusers.pipelines.live import Prompts, from_pipeline
from solverdistill.teachers.diffusers.pipelines.teacher import PipelineTeacher
from solverdistill.teachers.diffusers.pipelines.view import NETWORKS
from solverdistill.teachers.diffusers.prompts import best_device

LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name


def pipeline(
    weights: str,
    name: str | None = None,
    prompts: Prompts = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    guidance: float | None = None,
    guidance_argument: str | None = None,
    noise_range: Sequence[float] | None = None,
    weights_dtype: str = "bfloat16",
    variant: str | None = None,
    tiling: bool = False,
) -> PipelineTeacher:
    """A teacher from a folder as `save_pretrained` writes it, or a hub id.

    Its class, and those of its components, must be diffusers' and transformers' own: no code of the folder is run, and
    of weights only safetensors files are read. The networks go to the GPU where there is one; text encoders and
    decoders stay in the main memory, and come for as long as they work.

    Args:
        weights: Folder or hub id ("owner/name", "owner/name@revision").
        name: See `from_pipeline`.
        prompts: See `from_pipeline`.
        height: See `from_pipeline`.
        width: See `from_pipeline`.
        num_frames: See `from_pipeline`.
        arguments: Further arguments of the pipeline's call.
        guidance: See `from_pipeline`; the run's own guidance takes its place where it is set.
        guidance_argument: See `from_pipeline`.
        noise_range: See `from_pipeline`.
        weights_dtype: dtype of all weights.
        variant: Variant of the weight files, such as "fp16".
        tiling: Decode in tiles, where the pipeline's VAE can.
    Raises:
        FileNotFoundError, ValueError: something is missing or resists; the message says what.
    """
    pipe = load_pipeline(weights, weights_dtype, variant)
    if tiling and hasattr(pipe.vae, "enable_tiling"):
        pipe.vae.enable_tiling()
    return from_pipeline(
        pipe,
        prompts,
        guidance,
        height,
        width,
        num_frames,
        guidance_argument=guidance_argument,
        noise_range=noise_range,
        name=name,
        **(arguments or {}),
    )


def load_pipeline(weights: str, dtype: str = "bfloat16", variant: str | None = None) -> Any:
    """The pipeline of a folder in evaluation mode; its networks on the GPU where there is one, all else on the CPU.

    Raises:
        FileNotFoundError: it is neither here nor can it be downloaded.
        ValueError: its index names code that is not diffusers' or transformers', or it cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ValueError(f"model.weights_dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    diffusers = library()
    index = read_json(pipeline_folder(weights, (), variant), "model_index.json")
    parts = check_index(weights, index)
    folder = pipeline_folder(weights, parts, variant)
    kind = getattr(diffusers, str(index["_class_name"]))
    options = {"torch_dtype": DTYPES[dtype], "use_safetensors": True, "local_files_only": True}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)  # older versions know no other name
            networks = load_networks(folder, index, variant, options)
            pipe = kind.from_pretrained(str(folder), variant=variant, **networks, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the {kind.__name__} in {folder} cannot be loaded: {reason}") from None
    here = best_device()
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
            if name.startswith(NETWORKS):
                part.to(here)
    return pipe


def load_networks(
    folder: Path, index: Mapping[str, Any], variant: str | None, options: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """The networks of a pipeline, each loaded strictly: the libraries fill missing tensors with random numbers.

    Args:
        folder: The pipeline's folder.
        index: Its checked index.
        variant: Of the weight files, where a network has such.
        options: Of `from_pretrained`.
    Raises:
        ValueError: a network lacks weights, or cannot be loaded.
    """
    found = dict[str, nn.Module]()
    for part, entry in index.items():
        cls = class_of(entry)
        if not isinstance(cls, type) or nn.Module not in cls.__mro__:
            continue  # schedulers, tokenizers, processors
        place, own = folder / part, dict(options)
        if variant and any(place.glob(f"*.{variant}*.safetensors")):
            own["variant"] = variant
        load = partial(cls.from_pretrained, str(place), output_loading_info=True, **own)
        found[part] = load_strictly(place, cls.__name__, load)
    return found


def class_of(entry: Any) -> Any:
    """The class that an entry of a checked index names; None where it names none that is installed."""
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] is None:
        return None
    origin, name = map(str, entry)
    if origin == "transformers":
        import transformers

        return getattr(transformers, name, None)
    return getattr(library() if origin == "diffusers" else getattr(library().pipelines, origin), name, None)


def check_index(weights: str, index: Mapping[str, Any]) -> tuple[str, ...]:
    """The subfolders that an index of a pipeline names.

    Raises:
        ValueError: its class, or that of a component, is code of the folder's own or of an unknown library.
    """
    name = index.get("_class_name")
    if not isinstance(name, str) or not hasattr(library(), name):
        raise ValueError(f"{weights} is a {name}, no pipeline of the installed diffusers; no other code is run")
    parts = []
    for part, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] is None:
            continue
        origin = str(entry[0])
        if origin not in LIBRARIES and not hasattr(library().pipelines, origin):
            raise ValueError(
                f"{part} of {weights} is a {entry[1]} of {origin}; only classes of {' and '.join(LIBRARIES)} are loaded"
            )
        parts.append(part)
    return tuple(parts)
