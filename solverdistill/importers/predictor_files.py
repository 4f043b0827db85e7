"""Predictor objects of the EPD, AMED, AdaSDE and DyWeight code: raw numbers and the settings beside them.

They come as a pickle whose objects carry the source code of their class, read without running it, or as a JSON table of
the same facts: `class_name`, `init_kwargs`, `parameters`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.support.pickles import PersistentObject, read_pickle, state_dict_of

CLASSES = ("EPD_predictor", "AMED_predictor", "adasde_predictor", "DyWeight_predictor")
LARGEST = 1e6  # of any setting: ranges, exponents, guidance


@dataclass(frozen=True)
class Facts:
    """Settings with checked types; a missing one takes the default, and without a default is refused.

    Args:
        file: What messages call the file.
        values: Settings by name.
    """

    file: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def integer(self, name: str, default: int | None = None) -> int:
        return self._get(name, (int,), "an integer", default)

    def count(self, name: str, least: int, most: int = 1000) -> int:
        """A whole number within bounds, which keep a damaged file from asking for the machine's whole memory."""
        value = self.integer(name)
        if not least <= value <= most:
            raise ValueError(f"file {self.file} says {name} is {value}, which is not between {least} and {most}")
        return value

    @property
    def place(self) -> str:
        """Where the file comes from: what it says itself, or its own path."""
        source = self.values.get("source")
        return source if isinstance(source, str) and source else self.file

    @property
    def guidance(self) -> float | None:
        """Guidance scale, where the solver was fitted with classifier-free guidance."""
        return self.number("guidance_rate") if self.values.get("guidance_type") == "cfg" else None

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, (int, float), "a number", default)
        if not abs(value) < LARGEST:
            raise ValueError(f"file {self.file} says {name} is {str(value)[:20]}, which is no sensible number")
        return float(value)

    def word(self, name: str, default: str | None = None) -> str:
        return self._get(name, (str,), "a word", default)

    def flag(self, name: str, default: bool | None = None) -> bool:
        return self._get(name, (bool,), "true or false", default)

    def _get(self, name: str, kinds: tuple[type, ...], what: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"file {self.file} must say {name} as {what}, not {value!r}")
        return value


@dataclass(frozen=True)
class Predictor:
    """What a predictor file holds.

    Args:
        class_name: Name of the published class.
        facts: Its settings, with those of the training loss beside it where it lacks them.
        tensors: Raw params and buffers by their published names, float64.
    """

    class_name: str
    facts: Facts
    tensors: dict[str, Tensor]

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A raw tensor of a given shape.

        Raises:
            ValueError: it is missing, of another shape, or not finite.
        """
        value = self.tensors.get(name)
        if value is None:
            raise ValueError(f"file {self.facts.file} has no {name}; it holds {', '.join(self.tensors) or 'nothing'}")
        if tuple(value.shape) != shape:
            raise ValueError(f"file {self.facts.file} has {name} of shape {tuple(value.shape)}, expected {shape}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"file {self.facts.file} has a number in {name} that is not finite")
        return value


def predictor_of_json(path: str | os.PathLike[str], document: Any) -> Predictor | None:
    """The predictor of a JSON table, or None where it is no such table."""
    if not isinstance(document, dict) or document.get("class_name") not in CLASSES:
        return None
    arrays = {**_mapping(path, document, "buffers"), **_mapping(path, document, "parameters")}
    facts = {**_mapping(path, document, "loss"), **_mapping(path, document, "init_kwargs")}
    facts["source"] = str(document.get("source", ""))
    return Predictor(document["class_name"], Facts(str(path), facts), _arrays(path, arrays))


def predictor_of_pickle(path: str | os.PathLike[str]) -> Predictor | None:
    """The predictor of a pickle, or None where it holds none.

    Raises:
        ValueError: the pickle is damaged, or names something that is not on the list of what may be read.
    """
    document = read_pickle(path)
    if not isinstance(document, dict):
        return None
    record = document.get("model", document.get("predictor"))
    if not isinstance(record, PersistentObject) or record.class_name not in CLASSES:
        return None
    loss = document.get("loss_fn")
    beside = loss.state if isinstance(loss, PersistentObject) else {}
    attributes = {name: value for name, value in record.state.items() if not name.startswith("_")}
    facts = {**beside, **record.init_kwargs, **{k: v for k, v in attributes.items() if v is not None}}
    tensors = {name: value.detach().double() for name, value in state_dict_of(record).items()}
    return Predictor(record.class_name, Facts(str(path), facts), tensors)


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON document, or None where the file is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return None


def _mapping(path: str | os.PathLike[str], document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"file {path} must hold {name} as an object, not {type(value).__name__}")
    return value


def _arrays(path: str | os.PathLike[str], values: dict[str, Any]) -> dict[str, Tensor]:
    result = {}
    for name, value in values.items():
        try:
            result[name] = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"file {path} holds {name}, which is not an array of numbers") from None
    return result
