"""Predictor objects of the EPD, AMED, AdaSDE and DyWeight code: raw numbers and the settings beside them.

They come as a pickle whose objects carry the source code of their class, read without running it, or as a JSON table of
the same facts: `class_name`, `init_kwargs`, `parameters`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.support.arrays import float64_tensors
from solverdistill.support.facts import Facts
from solverdistill.support.json_files import parse_json
from solverdistill.support.pickles import PersistentObject, read_pickle, state_dict_of

CLASSES = ("EPD_predictor", "AMED_predictor", "adasde_predictor", "DyWeight_predictor")


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
            raise ValueError(
                f"file {self.facts.file} has no {name}; it holds {', '.join(self.tensors)[:200] or 'nothing'}"
            )
        if tuple(value.shape) != shape:
            raise ValueError(f"file {self.facts.file} has {name} of shape {tuple(value.shape)}, expected {shape}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"file {self.facts.file} has a number in {name} that is not finite")
        return value


def predictor_of_json(path: str | os.PathLike[str], document: Any) -> Predictor | None:
    """The predictor of a JSON table, or None where it is no such table."""
    name = document.get("class_name") if isinstance(document, dict) else None
    if not isinstance(name, str) or name not in CLASSES:
        return None
    arrays = {**_mapping(path, document, "buffers"), **_mapping(path, document, "parameters")}
    facts = {**_mapping(path, document, "loss"), **_mapping(path, document, "init_kwargs")}
    facts["source"] = document.get("source")
    return Predictor(name, Facts(str(path), facts), _arrays(path, arrays))


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
    return Predictor(record.class_name, Facts(str(path), facts), float64_tensors(path, state_dict_of(record)))


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON document, or None where the file is none.

    Raises:
        ValueError: it holds a number that is too large, or nests too deeply.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    except ValueError as error:
        raise ValueError(f"file {path} is not JSON that can be used: {error}") from None


def _mapping(path: str | os.PathLike[str], document: dict[str, Any], name: str) -> dict[str, Any]:
    value = {} if document.get(name) is None else document[name]
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
