"""Public names at their places of before resolve to the same objects, with a warning that names the new place."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import hydra
import pytest

from solverdistill.support.instantiate import instantiate
from solverdistill.support.old_paths import MOVED


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not met an old path yet."""
    for old in MOVED:
        parent, _, name = old.rpartition(".")
        monkeypatch.delitem(sys.modules, old, raising=False)
        if parent in sys.modules:
            monkeypatch.delattr(sys.modules[parent], name, raising=False)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_import_of_an_old_path_is_the_new_object(old: str) -> None:
    parent, _, name = old.rpartition(".")
    found: dict[str, object] = {}
    with pytest.warns(FutureWarning) as told:
        exec(f"from {parent} import {name}", found)
    assert [str(warning.message) for warning in told] == [f"{old} has moved to {MOVED[old]}; the old path will go"]
    assert found[name] is hydra.utils.get_object(MOVED[old])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert importlib.import_module(old) is found[name]  # told once


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("solverdistill.local.LocalTruncation", {}),
        ("solverdistill.local.RMSEBound", {}),
        ("solverdistill.objectives.PublishedEPD", {}),
        ("solverdistill.objectives.Trajectory", {"distance": "l1"}),
        ("solverdistill.search_loss.PublishedDSS", {}),
        (
            "solverdistill.teachers.callable.load_own",
            {"target": "torch.nn.Identity", "shape": [2], "prediction": "eps", "noise_schedule": "vp", "call": "x"},
        ),
    ],
)
@pytest.mark.parametrize("make", [instantiate, hydra.utils.instantiate])
def test_an_old_target_of_a_configuration_is_made(make: Any, target: str, settings: dict[str, object]) -> None:
    with pytest.warns(FutureWarning, match="has moved to solverdistill"):
        made = make({"_target_": target, **settings})
    assert type(made).__module__.startswith("solverdistill.")
    assert type(made).__name__ in (target.rpartition(".")[2], "OwnTeacher")


def test_names_that_never_were_are_still_missing() -> None:
    with pytest.raises(ImportError):
        importlib.import_module("solverdistill.localised")
    with pytest.raises(ImportError, match="Nothing"):
        exec("from solverdistill.objectives import Nothing", {})
    with pytest.raises(ImportError, match="Nothing"):
        exec("from solverdistill.local import Nothing", {})
