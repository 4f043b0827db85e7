"""Configurations composed without hydra are those that hydra composes; so are the objects made from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from solverdistill.support.instantiate import instantiate
from solverdistill.training.compose import compose, options_of
from solverdistill.training.config_files import find_configs

FOLDER = find_configs()
GROUPS = ("solver", "fit", "objective", "optimizer", "targets", "trainer", "logger", "evaluation")


@pytest.fixture(scope="module", autouse=True)
def configurations() -> Iterator[None]:
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        yield


def by_hydra(*overrides: str) -> Any:
    config = hydra_compose("train", overrides=[*overrides, "run_name=test", "output_dir=."])
    plain: Any = OmegaConf.to_container(config)
    return {key: value for key, value in plain.items() if key not in ("run_name", "output_dir", "ckpt_path")}


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_is_composed_as_hydra_does(group: str) -> None:
    options = options_of(FOLDER, group)
    assert options == sorted(path.stem for path in (FOLDER / group).glob("*.yaml")) != []
    for option in options:
        assert compose(FOLDER, {group: option}) == by_hydra(f"{group}={option}"), option


def test_every_teacher_is_composed_as_hydra_does() -> None:
    default = by_hydra()
    for option in options_of(FOLDER, "model"):
        composed = compose(FOLDER, {"model": option})
        written = OmegaConf.to_container(OmegaConf.load(FOLDER / "model" / f"{option}.yaml"))
        assert {**composed, "model": None} == {**default, "model": None}, option
        assert isinstance(written, dict)
        if "defaults" not in written:
            assert composed["model"] == written, option


def test_choices_of_several_groups_and_lists_are_composed_as_hydra_does() -> None:
    chosen = {"solver": "dss", "objective": "endpoint", "fit": ["race", "least_squares", "gradient"]}
    overrides = "solver=dss", "objective=endpoint", "fit=[race,least_squares,gradient]"
    composed = compose(FOLDER, chosen)
    assert composed == by_hydra(*overrides)
    assert list(composed["fit"]) == ["race", "least_squares", "gradient"]
    assert composed["objective"]["intermediate"] == 0.0


def test_what_is_composed_can_be_changed() -> None:
    compose(FOLDER, {})["solver"]["nfe"] = 100
    assert compose(FOLDER, {})["solver"]["nfe"] is None


def test_an_unknown_choice_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="solver=gass is unknown; known: .*dss, .*gas"):
        compose(FOLDER, {"solver": "gass"})
    with pytest.raises(ValueError, match="solvers is no group of the configuration; known: .*solver"):
        compose(FOLDER, {"solvers": "gas"})


def test_objects_are_made_of_their_targets() -> None:
    made = instantiate({"a": {"_target_": "fractions.Fraction", "_args_": [3, 6]}, "b": [1, {"c": 2}]})
    assert made["a"] == 0.5 and made["b"] == [1, {"c": 2}]
    bound = instantiate({"_target_": "fractions.Fraction", "_partial_": True, "numerator": 3})
    assert isinstance(bound, partial) and bound(denominator=4) == 0.75
    assert instantiate({"_target_": "fractions.Fraction.from_float", "_args_": [0.25]}) == 0.25


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"_target_": "fractions.Fraktion"},
            "^model of the configuration cannot be made: .*Fraktion.* cannot be import",
        ),
        ({"_target_": "no_such_module.thing"}, "cannot be imported .*no_such_module"),
        ({"_target_": "Fraction"}, "model of the configuration cannot be made: .*'Fraction' cannot be imported"),
        ({"_target_": "fractions.Fraction", "wrong": 1}, "model of the configuration cannot be made: .*wrong"),
        ({"_target_": "fractions.Fraction", "numerator": "???"}, "^model.numerator must be given$"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        instantiate(options, "model")


def test_configurations_lie_beside_the_package_in_a_checkout() -> None:
    assert FOLDER == Path(__file__).parents[2] / "configs"
