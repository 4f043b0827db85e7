"""The benchmark's networks with random weights: shapes, names of the published files, loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.benchmarks import emnist_flow, mnist_ddpm


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
