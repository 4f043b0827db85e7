"""Fits inside `torch.inference_mode()`, where nodes of ComfyUI run, are those outside of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from solverdistill import distill, wrap

TARGETS: dict[str, Any] = {"cache": None, "train_samples": 32, "validation_samples": 32}


class Network(nn.Module):
    """A smooth velocity with a buffer and a weight that is shared."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 4)
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        self.again = self.last
        self.register_buffer("scale", torch.full((4,), 0.9))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(torch.cat([x, time[:, None].to(x.dtype)], 1)))
        return self.again(hidden) * self.scale


def fitted(network: Any, fit: Any) -> float:
    teacher = wrap(network, "flow", "flow", shape=(4,))
    return distill(teacher, "bns", 3, fit=fit, targets=TARGETS, progress=False).rmse


@pytest.mark.parametrize("fit", [["race", "gauss_newton"], {"gradient": {"iterations": 6}}])
def test_a_fit_is_the_same_inside_and_outside(fit: Any) -> None:
    outside = fitted(Network(), fit)
    network = Network()
    with torch.inference_mode():
        assert fitted(network, fit) == outside
        built_inside = Network()
        assert built_inside.last.weight.is_inference()
        assert fitted(built_inside, fit) == outside
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert fitted(network, fit) == outside
        assert not torch.is_grad_enabled()


def test_a_live_teacher_made_inside_is_freed_of_its_marks() -> None:
    with torch.inference_mode():
        teacher = wrap(Network(), "flow", "flow", shape=(4,))
    assert not any(value.is_inference() for value in [*teacher.parameters(), *teacher.buffers()])
    with torch.inference_mode():
        network = teacher.network.network
        network.scale = network.scale.clone()
        network.last.weight = nn.Parameter(network.last.weight.detach().clone(), requires_grad=False)
        assert network.last.weight.is_inference() and network.again is network.last
        rmse = distill(teacher, "bns", 3, fit=["race", "gauss_newton"], targets=TARGETS, progress=False).rmse
    assert rmse == fitted(Network(), ["race", "gauss_newton"])
    assert not network.last.weight.is_inference() and not network.scale.is_inference()
    assert network.again.weight is network.last.weight


def test_a_function_with_weights_made_inside_is_told_of() -> None:
    with torch.inference_mode():
        network = Network()
    with pytest.raises(ValueError, match="[Ii]nference"):
        wrap(lambda x, time: network(x, time), "flow", "flow", shape=(4,))
