"""Turns the exceptions of a user's mistake into one sentence; a defect of ours keeps its traceback."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from solverdistill.support.memory import OutOfMemory, is_out_of_memory, reason

# What hydra leaves in a run's folder before our code runs.
LEFT_BY_HYDRA = {".hydra", "train.log"}
# Packages of the extras that pyproject.toml lists, by their import names.
EXTRAS = {
    "fit": ("yaml", "torchmetrics", "safetensors", "torchdiffeq", "sklearn", "scipy", "matplotlib", "rich", "PIL"),
    "train": ("lightning", "hydra", "omegaconf", "wandb", "cleanfid", "torchvision", "lion_pytorch"),
    "diffusers": ("diffusers", "transformers", "accelerate"),
    "hub": ("huggingface_hub",),
}
EXTRA_OF = {package: extra for extra, packages in EXTRAS.items() for package in packages}


def say_and_exit(error: Exception, folders: Iterable[str] = ()) -> NoReturn:
    """Print one sentence and exit with code 2 for a user's mistake; raise anything else on.

    Folders of the run that hold nothing yet but hydra's own files are removed. With SOLVERDISTILL_TRACEBACK (or
    HYDRA_FULL_ERROR) set, every error keeps its traceback.
    """
    sentence = explain(error)
    if sentence is None or os.environ.get("SOLVERDISTILL_TRACEBACK"):
        raise error
    for folder in folders:
        _remove_unused(Path(folder).absolute())
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _remove_unused(folder: Path) -> None:
    """Remove a folder without a file of ours, and what it leaves empty above it, up to the working folder."""
    here = Path.cwd()
    if not folder.is_dir() or here.is_relative_to(folder):
        return
    if not {entry.name for entry in folder.iterdir()} <= LEFT_BY_HYDRA:
        return
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # the first that is not empty
        for above in folder.parents:
            if above == here or not above.is_relative_to(here):
                break
            above.rmdir()


def explain(error: BaseException) -> str | None:
    """Say in one sentence what a user can mend, or None where the exception is no user's mistake.

    Covers settings (hydra, omegaconf, our own checks), files, memory, and extras that are not installed. A ValueError
    or TypeError counts as a user's mistake only where it was raised by this package's checks.
    """
    module = type(error).__module__.split(".")[0]
    if module in ("hydra", "omegaconf"):
        return _of_configuration(error)
    if module == "yaml":
        return _of_yaml(error)
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's, in anybody's code
        return "this user has no home folder; set HOME to a folder that can be written to"
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8, as settings and texts have to be: {error}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in EXTRA_OF:
        package = str(error.name).split(".")[0]
        return f"{package} is not installed, which this needs; pip install 'solverdistill[{EXTRA_OF[package]}]'"
    if isinstance(error, OutOfMemory):
        return _flat(str(error))
    if is_out_of_memory(error):
        return f"out of memory: {reason(error)}; lower the batch size, or take a device with more"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename}" if error.filename else _flat(str(error))
    if isinstance(error, (ValueError, TypeError, FileNotFoundError)) and _raised_here(error):
        return _flat(str(error))
    return None


def _of_configuration(error: BaseException) -> str:
    cause = error.__cause__
    text = str(error)
    if cause is not None and type(error).__name__ == "InstantiationException":
        target = re.search(r"target '([^']+)'", text)
        where = re.search(r"full_key: (\S+)", text)
        name = where.group(1) if where else target.group(1) if target else "an object"
        return f"{name} of the configuration cannot be made: {_flat(str(cause))}"
    misspelt = re.search(r"Could not override '([^']+)'", text)
    if misspelt:
        return f"override {misspelt.group(1)!r} names a key that the configuration does not have; --cfg job shows all"
    return _flat(text)


def _of_yaml(error: BaseException) -> str:
    mark: Any = getattr(error, "problem_mark", None)
    where = "a configuration" if mark is None else f"{mark.name}, line {mark.line + 1}, column {mark.column + 1},"
    return f"{where} is no YAML: {_flat(str(getattr(error, 'problem', None) or error))}"


def _raised_here(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    spec = None if trace is None else trace.tb_frame.f_globals.get("__spec__")  # a command's __name__ is __main__
    return spec is not None and spec.name.split(".")[0] == "solverdistill"


def _flat(text: str) -> str:
    return " ".join(text.split())
