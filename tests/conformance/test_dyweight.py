"""DyWeight against the official sampler, class and FLUX runner, state by state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from solverdistill import families
from solverdistill.families.learned.dyweight import DyWeight
from solverdistill.noise.levels import float64
from solverdistill.programs.playing import sample
from tests.helpers import golden_mixture

FOLDER = Path(__file__).parents[1] / "goldens" / "dyweight"
PIXELS = sorted(path.stem for path in FOLDER.glob("*.npz") if not path.stem.startswith("flux"))
RANDOM = [name for name in PIXELS if name.startswith("random")]
FLUX = sorted(path.stem for path in FOLDER.glob("flux*.npz"))


def load(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: float64(arrays[key]) for key in arrays.files}


def family_of(golden: dict[str, Tensor], **options: Any) -> DyWeight:
    settings: dict[str, Any] = {
        "max_history": int(golden["max_history"]) or None,
        "afs": bool(golden.get("afs", False)),
        "learn_time_scale": "t_scale" in golden,
        **options,
    }
    family = families.build("dyweight", golden["grid"], **settings)
    assert isinstance(family, DyWeight)
    return family


def params_of(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: golden[name] for name in ("hybrid_weights", "t_scale") if name in golden}


@pytest.mark.parametrize("name", PIXELS)
def test_states_equal_the_official_sampler(name: str) -> None:
    golden = load(name)
    family, z = family_of(golden), golden["z"]
    program = family.program(params_of(golden))
    states = sample(program, golden_mixture(golden), z, readouts=True)
    torch.testing.assert_close(states, golden["states_unguarded"][1:], rtol=1e-11, atol=1e-11)
    assert (states - golden["states"][1:]).abs().max() < 2e-7  # the published code adds 1e-8 to its divisor
    told = program.sigma / program.alpha
    torch.testing.assert_close(told, golden["calls_sigma"][:, 0], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", FLUX)
def test_the_flow_variant_equals_the_official_runner(name: str) -> None:
    golden = load(name)
    family = family_of(golden, path="flow", keep_output=True)
    program = family.program(params_of(golden))
    end = sample(program, golden_mixture(golden), golden["z"])
    torch.testing.assert_close(end, golden["x_out"], rtol=1e-11, atol=1e-11)
    told = program.sigma / (program.alpha + program.sigma)
    torch.testing.assert_close(told, golden["calls_sigma"][:, 0].clamp(max=1.0), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", RANDOM)
def test_the_start_and_the_acting_entries_are_those_of_the_official_class(name: str) -> None:
    golden = load(name)
    family = family_of(golden, init_from="euler" if "noscale" in name else "ipndm")
    torch.testing.assert_close(family.init(0)["hybrid_weights"], golden["initial_weights"], rtol=1e-7, atol=1e-7)
    assert torch.equal(family.acting, golden["mask"].bool())


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_starts_as_ipndm(order: int, afs: bool) -> None:
    grid = families.build("ipndm", [80.0, 30.0, 9.0, 2.5, 0.5, 0.002]).grid
    ours = families.build("dyweight", grid, max_history=order, afs=afs)
    theirs = families.build("ipndm", grid, max_order=order, afs=afs)
    program, expected = ours.program(ours.init(0)), theirs.program()
    for attribute in ("A", "B", "alpha", "sigma", "level"):
        torch.testing.assert_close(getattr(program, attribute), getattr(expected, attribute), rtol=1e-12, atol=1e-12)


def test_weights_that_do_not_add_up_to_one_move_the_levels() -> None:
    family = families.build("dyweight", [80.0, 20.0, 2.0, 0.002])
    params = family.init(0)
    params["hybrid_weights"][0, 0] = 0.9
    levels = [float(level.sigma) for level in family.prepared_levels(params)]
    assert levels[1] == pytest.approx(80.0 - 0.9 * 60.0)
    assert levels[-1] == 0.002
    assert family.program(params).level[1, 1] / family.program(params).level[1, 0] == pytest.approx(26.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_history": 0}, "max_history of dyweight must be at least 1"), ({"init_from": "zeros"}, "known: ipndm")],
)
def test_a_wrong_hyperparameter_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        families.build("dyweight", [80.0, 0.002], **options)
