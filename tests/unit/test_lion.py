"""The Lion of configs/optimizer/lion.yaml follows its paper's rule and the lattice that published DSS tables show."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf

from solverdistill.training.descent import make_optimizer

CONFIG = Path(__file__).parents[2] / "configs" / "optimizer" / "lion.yaml"


def test_every_param_moves_by_the_learning_rate_in_the_direction_of_the_momentum() -> None:
    config = OmegaConf.to_container(OmegaConf.load(CONFIG))
    assert isinstance(config, dict)
    options = {key: value for key, value in config.items() if key not in ("cosine", "final_lr")}
    lr, (beta_1, beta_2) = options["lr"], options["betas"]
    value = torch.nn.Parameter(torch.zeros(8, dtype=torch.float64))
    optimizer = make_optimizer(dict(options))([("value", value)])
    expected, momentum = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    for _ in range(20):
        gradient = torch.randn(8, dtype=torch.float64)
        value.grad = gradient.clone()
        optimizer.step()
        expected -= lr * torch.sign(beta_1 * momentum + (1 - beta_1) * gradient)
        momentum = beta_2 * momentum + (1 - beta_2) * gradient
        torch.testing.assert_close(value.detach(), expected, rtol=0.0, atol=1e-15)
    lattice = value.detach() / lr
    torch.testing.assert_close(lattice, lattice.round(), rtol=0.0, atol=1e-9)
