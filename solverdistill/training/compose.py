"""Composes the shipped configurations without hydra: what a Python call needs of them, and no more.

Understands what the shipped files use: defaults lists with groups (one option or a list of them), `_self_`, a package
after `@`, `override /group: option`, and the `# @package` line. Tests hold it against hydra for every file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

Choice = str | Sequence[str]
FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|Inf|INF))$"
)
PACKAGE_LINE = re.compile(r"^#\s*@package\s+(\S+)")
LEFT_OUT = ("hydra", "run_name", "output_dir", "ckpt_path")  # of train.yaml: what a command needs


def compose(folder: Path, choices: Mapping[str, Choice]) -> dict[str, Any]:
    """The configuration of a run, as `train.py` composes it from the same choices.

    Args:
        folder: Folder of the configurations.
        choices: Options of groups, by the groups' names; of `fit` several in their order.
    Raises:
        ValueError: a group has no such option; the message lists those that it has.
    """
    main, entries = _read(folder / "train.yaml"), {}
    for entry in main.pop("defaults"):
        if isinstance(entry, dict):
            group, option = next(iter(entry.items()))
            entries[group] = option
    for group in choices:
        if group not in entries:
            raise ValueError(f"{group} is no group of the configuration; known: {', '.join(entries)}")
    default: dict[str, Choice] = {key: option for key, option in entries.items() if not key.startswith("optional ")}
    chosen = {**default, **_overridden(folder, {**default, **choices}), **choices}
    composed: dict[str, Any] = {}
    for group, option in chosen.items():
        for name in [option] if isinstance(option, str) else option:
            merge(composed, _load(folder, group, name))
    return merge(composed, {key: value for key, value in main.items() if key not in LEFT_OUT})


def options_of(folder: Path, group: str) -> list[str]:
    """Names of the options of a group."""
    return sorted(path.stem for path in (folder / group).glob("*.yaml"))


def merge(into: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Put other values into a configuration: mappings are merged, everything else is replaced."""
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = deepcopy(dict(value)) if isinstance(value, Mapping) else deepcopy(value)
    return into


def _overridden(folder: Path, chosen: Mapping[str, Choice]) -> dict[str, Choice]:
    """What chosen files say of other groups."""
    found: dict[str, Choice] = {}
    for group, option in chosen.items():
        for name in [option] if isinstance(option, str) else option:
            for entry in _read(_path(folder, group, name)).get("defaults", ()):
                if isinstance(entry, dict):
                    found |= {key[10:]: value for key, value in entry.items() if key.startswith("override /")}
    return found


def _load(folder: Path, group: str, name: str, package: str | None = None) -> dict[str, Any]:
    """One option of a group at its place in the configuration."""
    path = _path(folder, group, name)
    own = PACKAGE_LINE.match(path.read_text(encoding="utf-8"))
    at = package or (own.group(1) if own else group)
    composed: dict[str, Any] = {}
    values = _read(path)
    for entry in values.pop("defaults", ()):
        if isinstance(entry, str) and entry != "_self_":
            other, _, place = entry.partition("@")
            merge(composed, _load(folder, group, other, at if place in ("", "_here_") else place))
    for part in reversed([] if at == "_global_" else at.split(".")):
        values = {part: values}
    return merge(composed, values)


def _path(folder: Path, group: str, name: str) -> Path:
    path = folder / group / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{group}={name} is unknown; known: {', '.join(options_of(folder, group))}")
    return path


def _read(path: Path) -> dict[str, Any]:
    return deepcopy(_parsed(path))


@cache
def _parsed(path: Path) -> dict[str, Any]:
    return _yaml_reader()(path.read_text(encoding="utf-8")) or {}


@cache
def _yaml_reader() -> Callable[[str], Any]:
    """Reads YAML as omegaconf does, for which 1e-4 is a number, too."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ImportError("configurations are read by pyyaml; pip install 'solverdistill[fit]'") from error

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
    return partial(yaml.load, Loader=Loader)
