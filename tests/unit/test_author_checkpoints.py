"""Files of DiT, SiT and the consistency models: what loads, what is refused and in which words; random weights."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from solverdistill.networks import DiT, GuidedUNet
from solverdistill.teachers.checkpoints.cards import cards
from solverdistill.teachers.consistency import consistency_checkpoint
from solverdistill.teachers.sit import dit_checkpoint, sit_checkpoint

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
DIT: dict[str, Any] = {"input_size": 4, "hidden_size": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
UNET: dict[str, Any] = {
    "image_size": 4,
    "model_channels": 32,
    "channel_mult": [1],
    "num_res_blocks": 1,
    "attention_resolutions": [4],
    "head_channels": 16,
}
LOADERS = {"dit_xl": dit_checkpoint, "sit_xl": sit_checkpoint, "cm_bedroom256": consistency_checkpoint}
NETWORKS = {"dit_xl": (DiT, DIT), "sit_xl": (DiT, DIT), "cm_bedroom256": (GuidedUNet, UNET)}


def small(name: str) -> dict[str, Tensor]:
    """Tensors of a small network with weights that switch nothing off."""
    cls, arguments = NETWORKS[name]
    network = cls(**arguments)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.state_dict()


def load(name: str, path: Path, **options: Any) -> Any:
    return LOADERS[name](name, path, network=NETWORKS[name][1], **options)


def denoise(teacher: Any) -> Tensor:
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(1))
    return teacher(x, torch.tensor([0.9, 0.4]), torch.tensor([0.3, 0.8]))


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("kind", ["plain", "training", "safetensors"])
def test_the_three_kinds_of_files_give_the_same_teacher(name: str, kind: str, tmp_path: Path) -> None:
    tensors = small(name)
    path, reference = tmp_path / "weights.pt", tmp_path / "reference.pt"
    torch.save(tensors, reference)
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind == "plain":
        torch.save(tensors, path)
    else:
        state = {"model": small(name), "ema": tensors, "opt": {"state": {}}, "args": Namespace(lr=1e-4, ckpt=None)}
        torch.save(state, path)
    teacher = load(name, path)
    assert teacher.name == f"{name}-custom"
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    loaded = {key.rpartition("network.")[2]: value for key, value in teacher.state_dict().items()}
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    assert denoise(teacher).isfinite().all()
    assert teacher.fingerprint() == load(name, reference).fingerprint()


@pytest.mark.parametrize("name", LOADERS)
def test_half_precision_loads_into_float32(name: str, tmp_path: Path) -> None:
    tensors = {key: value.half() for key, value in small(name).items()}
    torch.save(tensors, tmp_path / "half.pt")
    teacher = load(name, tmp_path / "half.pt")
    assert {value.dtype for value in teacher.state_dict().values()} == {torch.float32}
    assert denoise(teacher).dtype == torch.float32


def test_a_file_without_variance_channels_is_recognised(tmp_path: Path) -> None:
    network = DiT(**DIT, learn_sigma=False)
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    assert denoise(load("sit_xl", tmp_path / "plain.pt")).shape == (2, 4, 4, 4)


def test_running_reaches_the_network(tmp_path: Path) -> None:
    torch.save(small("sit_xl"), tmp_path / "weights.pt")
    exact, rough = (load("sit_xl", tmp_path / "weights.pt", running=r) for r in (None, {"dtype": "bfloat16"}))
    assert exact.fingerprint() == rough.fingerprint()
    error = (denoise(exact) - denoise(rough)).abs().max().item()
    assert 1e-5 < error < 0.2
    assert denoise(rough).dtype == torch.float32
    with pytest.raises(ValueError, match="running.attention 'fast'"):
        load("sit_xl", tmp_path / "weights.pt", running={"attention": "fast"})


@pytest.mark.parametrize("name", LOADERS)
def test_random_weights_are_labelled_and_seeded(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        one, same, other = (LOADERS[name](name, "random", NETWORKS[name][1], seed=seed) for seed in (0, 0, 1))
    assert one.name == f"{name}-custom-random"
    assert caplog.text.count(f"{name} has RANDOM WEIGHTS") == 3
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    denoised = denoise(one)
    assert denoised.isfinite().all() and not torch.allclose(denoised[0], denoised[1])
    x = torch.randn(1, *one.shape, requires_grad=True)
    sigma = torch.tensor([0.5], requires_grad=True)
    for gradient in torch.autograd.grad(one(x, torch.tensor([0.7]), sigma).square().sum(), (x, sigma)):
        assert gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize(("name", "file"), [("dit_xl_512", "DiT-XL-2-512x512.pt"), ("sit_xl", "SiT-XL-2-256x256.pt"),
                                            ("cm_cat256", "edm_cat256_ema.pt")])  # fmt: skip
def test_a_missing_file_gives_one_sentence(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path))
    monkeypatch.setenv("SOLVERDISTILL_OFFLINE", "1")
    loader = {"dit": dit_checkpoint, "sit": sit_checkpoint, "cm_": consistency_checkpoint}[name[:3]]
    with pytest.raises(FileNotFoundError, match=f"{name} needs {file}.*get it from https.*put it at") as caught:
        loader(name)
    assert str(caught.value).count("\n") == 0 and str(tmp_path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere.pt of .* does not exist"):
        loader(name, tmp_path / "nowhere.pt")


def test_another_architecture_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    tensors = small("dit_xl")
    torch.save(tensors, path)
    for changed, message in (
        ({"depth": 2}, "lacks tensor blocks.1"),
        ({"input_size": 8}, "pos_embed has shape .1, 4, 8. and not .1, 16, 8."),
        ({"num_classes": 10}, "embedding_table.weight has shape .4, 8. and not .11, 8."),
    ):
        with pytest.raises(ValueError, match=f"is not the DiT of dit_xl: .*{message}"):
            dit_checkpoint("dit_xl", path, {**DIT, **changed})
    with pytest.raises(ValueError, match="is not the GuidedUNet of cm_bedroom256: it lacks tensor"):
        load("cm_bedroom256", path)
    with pytest.raises(ValueError, match="is not the DiT of sit_xl: it lacks tensor blocks.1.*and 269 more"):
        sit_checkpoint("sit_xl", path)
    torch.save({**tensors, "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="unknown tensor extra"):
        load("dit_xl", path)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(small("sit_xl"), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="truncated"):
        load("sit_xl", path)
    torch.save({"ema": {"a": "text"}}, path)
    with pytest.raises(ValueError, match="is no state dict"):
        load("sit_xl", path)
    torch.save({"ema": small("sit_xl"), "hook": print}, path)
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load("sit_xl", path)


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model.network has no argument 'width'; DiT takes: input_size"):
        sit_checkpoint("sit_xl", "random", {"width": 3})
    with pytest.raises(ValueError, match="model.network changes the network of sit_xl"):
        sit_checkpoint("sit_xl", None, DIT)
    with pytest.raises(ValueError, match="checkpoint cm_cat256 is no DiT"):
        dit_checkpoint("cm_cat256", "random")
    with pytest.raises(ValueError, match="checkpoint 'sit_s' has no card"):
        sit_checkpoint("sit_s")


@pytest.mark.parametrize("name", ["dit_xl", "dit_xl_512", "sit_xl", "cm_bedroom256", "cm_cat256"])
def test_cards_describe_their_networks(name: str) -> None:
    card = cards()[name]
    cls = {"DiT": DiT, "GuidedUNet": GuidedUNet}[card.config["network"]]
    with torch.device("meta"):
        network = cls(**card.config["arguments"])
    assert sum(parameter.numel() for parameter in network.parameters()) == card.parameters
    assert card.url and card.url.startswith("https://")


@pytest.mark.parametrize("name", ["dit_xl", "dit_xl_512", "sit_xl", "cm_bedroom256", "cm_cat256"])
def test_configurations_make_their_teachers(name: str) -> None:
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert config.name == name and config.weights is None and config.network is None
    small = UNET if name.startswith("cm") else DIT
    changes = {"weights": "random", "network": small, "running": {"channels_last": True, "attention": "math"}}
    teacher = instantiate(OmegaConf.merge(config, changes))
    assert teacher.name == f"{name}-custom-random"
    assert teacher.path.name == {"d": "discrete", "s": "flow", "c": "edm"}[name[0]]
    plain = instantiate(OmegaConf.merge(config, {"weights": "random", "network": small}))
    assert plain.fingerprint() == teacher.fingerprint()
    torch.testing.assert_close(denoise(plain), denoise(teacher), rtol=1e-4, atol=1e-4)
