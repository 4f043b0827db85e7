"""The benchmark's networks with random weights: shapes, names of the published files, loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.benchmarks import cifar_size, emnist_flow, mnist_ddpm
from solverdistill.teachers.checkpoints.cards import card
from solverdistill.teachers.nvlabs import edm_checkpoint, load_network
from tests.unit.test_mnist_classifier import bars, write


def randomised(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def test_the_ddpm_has_the_tensors_of_its_file() -> None:
    network = mnist_ddpm.MnistDDPM()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert len(shapes) == 29 and sum(value.numel() for value in network.parameters()) == 291_217
    assert shapes["gt.blocks.0.net.0.weight"] == (16, 1, 7, 7) and shapes["gt.blocks.2.net.1.weight"] == (32, 28, 28)
    assert shapes["gt.blocks.4.weight"] == (1, 16, 3, 3) and shapes["gt.time_embed.6.weight"] == (16, 128)
    assert shapes["gt.frequencies"] == (16,) and shapes["alpha_t"] == shapes["beta_t"] == (1001,)
    assert float(network.alpha_t[-1]) == pytest.approx(3.9952e-5, rel=1e-3)


def test_the_flow_has_the_tensors_of_its_files() -> None:
    shapes = {key: tuple(value.shape) for key, value in emnist_flow.LatentFlow().state_dict().items()}
    assert len(shapes) == 23 and sum(v.numel() for v in emnist_flow.LatentFlow().parameters()) == 23_097
    assert shapes["network.2.attn.q_proj.weight"] == (24, 32) and shapes["network.0.weight"] == (32, 3, 5, 5)
    assert shapes["network.2.conv.network.2.weight"] == (160, 1, 3, 3) and shapes["yemb.weight"] == (49, 47)
    decoder = {key: tuple(value.shape) for key, value in emnist_flow.make_decoder().state_dict().items()}
    assert decoder["3.conv.network.0.weight"] == (240, 48, 1, 1) and decoder["7.weight"] == (1, 32, 5, 5)
    assert decoder["5.weight"] == (32, 48, 3, 3) and decoder["1.attn.out_proj.weight"] == (48, 32)


def test_files_load_into_the_networks(tmp_path: Path) -> None:
    ddpm, flow, decoder = (
        randomised(n) for n in (mnist_ddpm.MnistDDPM(), emnist_flow.LatentFlow(), emnist_flow.make_decoder())
    )
    torch.save(ddpm.state_dict(), tmp_path / "ddpm.pth")
    torch.save(flow.state_dict(), tmp_path / "flow.pth")
    encoder = {"encoder.0.weight": torch.zeros(1)}
    torch.save(encoder | {f"decoder.{k}": v for k, v in decoder.state_dict().items()}, tmp_path / "autoencoder.pth")
    x, time = torch.randn(3, 1, 28, 28), torch.tensor([0.0, 0.4321, 1.0])
    loaded = mnist_ddpm.load(str(tmp_path / "ddpm.pth"))
    assert torch.equal(loaded(x, time), ddpm(x, time)) and not any(p.requires_grad for p in loaded.parameters())
    z, onehot = torch.randn(3, 1, 7, 7), torch.eye(47)[:3]
    velocity = emnist_flow.load(str(tmp_path / "flow.pth"))
    assert torch.equal(velocity(z, time, onehot), flow(z, time, onehot))
    torch.testing.assert_close(velocity(z, time, 0 * onehot), velocity(z, time))
    images = emnist_flow.load_decoder(str(tmp_path / "autoencoder.pth"))(z)
    assert images.shape == (3, 1, 28, 28) and torch.equal(images, decoder(z))
    with pytest.raises(FileNotFoundError, match="do not exist"):
        mnist_ddpm.load(str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match="are not those of LatentFlow"):
        emnist_flow.load(str(tmp_path / "ddpm.pth"))


def test_digits_are_coloured_in_a_frame_of_the_background() -> None:
    digits = torch.full((5, 1, 28, 28), -1.0)
    digits[..., 10:18, 10:18] = 1.0
    images = cifar_size.coloured(digits)
    assert images.shape == (5, 3, 32, 32) and bool((images.abs() <= 1).all())
    for image in images:
        ground, ink = image[:, 0, 0], image[:, 16, 16]
        assert not torch.equal(ground, ink)
        assert bool((image[:, 12:20, 12:20] - ink[:, None, None]).abs().max() < 1e-6)
        assert bool((image[:, :12] == ground[:, None, None]).all())
    assert len({float(image[0, 0, 0]) for image in images}) == 5


def test_a_network_of_cifar_size_is_trained_and_loads_as_a_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = card("edm_cifar")
    small = {**facts.config["arguments"], "model_channels": 8, "num_blocks": 1, "dropout": 0.0}
    facts = replace(facts, config={**facts.config, "arguments": small})
    monkeypatch.setattr(cifar_size, "card", lambda name: facts)
    monkeypatch.setattr(cifar_size, "LEARNING_RATE", 5e-3)
    monkeypatch.setattr("solverdistill.teachers.nvlabs.card", lambda name: facts)
    images, _ = write(tmp_path, *bars(40))
    said = list[str]()
    for steps in (1, 60):
        out = tmp_path / f"{steps}.safetensors"
        command = [
            "cifar_size",
            str(images),
            "--steps",
            str(steps),
            "--batch",
            "8",
            "--device",
            "cpu",
            "--out",
            str(out),
        ]
        monkeypatch.setattr("sys.argv", command)
        cifar_size.main()
        said.append(capsys.readouterr().out.strip().split("\n")[-1])
    losses = [float(text.split("loss ")[1].split(" ")[0]) for text in said]
    assert said[1].startswith(f"{out} is written; 60 steps of 8 images") and losses[1] < 0.8 * losses[0]
    assert all(bool(value.isfinite().all()) for value in load_network(facts, out).state_dict().values())
    teacher = edm_checkpoint("edm_cifar", out)
    noise = torch.randn(2, 3, 32, 32)
    assert teacher(80 * noise, torch.ones(2), torch.full((2,), 80.0)).shape == noise.shape
