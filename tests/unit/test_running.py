"""Switches of a frozen network: they change how it runs, never what it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from solverdistill.teachers.running import FrozenNetwork, Running


class Probe(nn.Module):
    """A small network that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(2, 2, 1), nn.Dropout(0.5)
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        out = self.drop(self.conv(x)) * scale
        self.seen = {"dtype": out.dtype, "last": x.is_contiguous(memory_format=torch.channels_last)}
        return out


def test_it_is_frozen_and_stays_in_evaluation_mode() -> None:
    probe = Probe()
    frozen = FrozenNetwork(probe).train()
    assert not probe.training and not any(value.requires_grad for value in frozen.parameters())
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(frozen(x, scale=2.0), 2 * probe(x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_under_autocast_with_gradients(dtype: str) -> None:
    probe = Probe()
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    FrozenNetwork(probe, {"dtype": dtype})(x).float().sum().backward()
    assert probe.seen["dtype"] == getattr(torch, dtype) and probe.conv.weight.dtype == torch.float32
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())


def test_images_can_be_channels_last() -> None:
    probe = Probe()
    x = torch.randn(2, 2, 4, 4)
    expected = FrozenNetwork(probe)(x)
    torch.testing.assert_close(FrozenNetwork(probe, {"channels_last": True})(x), expected)
    assert probe.seen["last"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own forward derivatives
def test_a_compiled_network_is_differentiated_forwards_in_its_original(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compile_(network: nn.Module) -> Any:
        def compiled(*inputs: Any, **options: Any) -> Any:
            calls.append("compiled")
            return network(*inputs, **options)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    frozen = FrozenNetwork(Probe(), Running(compile=True))
    x = torch.randn(1, 2, 4, 4)
    expected = frozen(x)
    assert calls == ["compiled"]
    out, tangent = torch.func.jvp(frozen, (x,), (torch.ones_like(x),))
    assert calls == ["compiled"]
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(tangent, frozen(x + 1) - expected)
    assert len(list(frozen.parameters())) == 2  # the compiled one adds none


def test_attention_takes_the_kernel_that_is_asked_for() -> None:
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    x = torch.randn(1, 2, 5, 4)
    math, free = FrozenNetwork(Attends(), {"attention": "math"})(x), FrozenNetwork(Attends())(x)
    torch.testing.assert_close(math, free, rtol=1e-5, atol=1e-6)


def test_unknown_switches_are_refused() -> None:
    with pytest.raises(ValueError, match="running.dtype 'half' is unknown; known: float32, bfloat16, float16"):
        Running(dtype="half")
    with pytest.raises(ValueError, match="running.attention 'fast' is unknown"):
        Running(attention="fast")
    with pytest.raises(ValueError, match="running cannot be used"):
        Running.of({"dtpye": "float32"})
