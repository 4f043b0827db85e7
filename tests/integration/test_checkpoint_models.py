"""The configurations of released checkpoints: they compose, say what is missing, and train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from solverdistill import read_solver
from solverdistill.support.mistakes import explain
from solverdistill.teachers import nvlabs
from solverdistill.teachers.checkpoints.cards import Card, card, cards
from solverdistill.training.run import train
from tests.integration.test_train import composed, names

NETWORK: dict[str, Any] = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "channel_mult": [1, 2]}
NETWORK |= {"num_blocks": 1, "attn_resolutions": [4]}
EDM_CARDS = sorted(name for name, entry in cards().items() if entry.config.get("network") in nvlabs.NETWORKS)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOLVERDISTILL_OFFLINE", "1")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every card gets a small network of its own kind."""

    def shrunk(name: str) -> Card:
        config = dict(card(name).config)
        song = config["network"] == "SongUNet"
        config["arguments"] = {**NETWORK, "model_channels": 16 if song else 64}
        if config["preconditioning"] == "iddpm":
            config["arguments"]["out_channels"] = 2
        if "label_dim" in card(name).config["arguments"]:
            config["arguments"]["label_dim"] = 10
        return Card(name=name, url=card(name).url, licence="MIT", source="a test", config=config)

    monkeypatch.setattr(nvlabs, "card", shrunk)


def model(output: Path, *overrides: str) -> DictConfig:
    return composed(output, *overrides).model


def test_every_card_has_its_configuration(tmp_path: Path) -> None:
    composing = {name: model(tmp_path / name, f"model={name}") for name in EDM_CARDS}
    assert set(EDM_CARDS) <= set(names("model"))
    for name, config in composing.items():
        assert (config.name, config.weights) == (name, None)
        assert config["_target_"] == "solverdistill.teachers.nvlabs.edm_checkpoint"
        running = {"dtype": "float32", "channels_last": False, "compile": False, "attention": None}
        assert OmegaConf.to_container(config.running) == running


@pytest.mark.parametrize("name", ["edm_cifar", "baseline_imagenet64"])
def test_a_missing_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(InstantiationException) as caught:
        hydra.utils.instantiate(model(tmp_path / "run", f"model={name}"))
    entry = card(name)
    place = tmp_path / "home" / "checkpoints" / entry.file
    assert explain(caught.value) == (
        f"model of the configuration cannot be made: {name} needs {entry.file} ({entry.megabytes()}, {entry.licence}) "
        f"but it is not there: get it from {entry.url} and put it at {place}"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["edm_cifar_cond", "baseline_cifar_vp", "baseline_cifar_ve", "baseline_imagenet64"])
def test_every_kind_of_network_trains_with_random_weights(name: str, tmp_path: Path) -> None:
    few = ["model.weights=random", "targets.reference.steps=2"]
    train(composed(tmp_path / "run", "solver=epd", f"model={name}", *few))
    read = read_solver(tmp_path / "run" / "solver.json")
    assert read.provenance["teacher"]["name"] == f"{name}-random"
    assert all(bool(torch.isfinite(value).all()) for value in read.params.values())
