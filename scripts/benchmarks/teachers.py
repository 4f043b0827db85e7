"""The four teachers of the benchmark of the default run, by their names.

`edm_digits` is shipped. The weights of the others lie in folders of those who run the benchmark, and are given as
``--weights mnist=model.pth emnist=flow.pth emoji32=edm_emoji32.safetensors``: `mnist_ddpm` and `emnist_flow` say where
they come from; emoji32 is a class-conditional SongUNet with EDM preconditioning, as scripts/train_teacher.py writes
one, of 32 x 32 colour pictures in nine classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solverdistill import load_teacher
from solverdistill.denoisers.base import Teacher
from solverdistill.teachers.edm import EDMTeacher, load_song_unet

GUIDANCE = {"emoji32": 2.0}  # of the others 1, the conditional network itself
WEIGHTS = ("mnist", "emnist", "emoji32")
TEACHERS = ("digits", *WEIGHTS)
OWN: dict[str, dict[str, Any]] = {  # settings of model=callable
    "mnist": {
        "target": "scripts.benchmarks.mnist_ddpm.load",
        "prediction": "eps",
        "shape": [1, 28, 28],
        "time_scale": 0.001,
        "noise_schedule": {
            "name": "discrete",
            "beta_schedule": "linear",
            "beta_start": 1e-4,
            "beta_end": 0.02,
            "steps": 1001,
        },
    },
    "emnist": {
        "target": "scripts.benchmarks.emnist_flow.load",
        "prediction": "flow",
        "shape": [1, 7, 7],
        "noise_schedule": "flow",
        "time": "reversed",
        "num_classes": 47,
        "condition": "onehot",
    },
}


def load(name: str, weights: Mapping[str, str]) -> Teacher:
    """A teacher by its name.

    Args:
        name: One of `TEACHERS`.
        weights: Files of the teachers that are not shipped, by their names.
    Raises:
        ValueError: there is no such teacher, or its file was not given.
        FileNotFoundError: its file is not there.
    """
    if name == "digits":
        return load_teacher("edm_digits")
    if name not in WEIGHTS:
        raise ValueError(f"teacher {name!r} is unknown; known: {', '.join(TEACHERS)}")
    if name not in weights:
        raise ValueError(f"the weights of {name} are not shipped; give their file with --weights {name}=FILE")
    if name in OWN:
        return load_teacher("callable", {**OWN[name], "name": name, "arguments": {"weights": weights[name]}})
    return EDMTeacher(load_song_unet(weights[name]), name, (3, 32, 32), num_classes=9)


def parse_weights(given: list[str]) -> dict[str, str]:
    """Files by the names of teachers, from ``name=file``.

    Raises:
        ValueError: one is something else.
    """
    pairs = [text.partition("=") for text in given]
    for name, _, file in pairs:
        if name not in WEIGHTS or not file:
            raise ValueError(f"--weights takes {'=FILE, '.join(WEIGHTS)}=FILE, not {name!r}")
    return {name: file for name, _, file in pairs}
