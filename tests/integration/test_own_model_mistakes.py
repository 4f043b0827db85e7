"""What trips people up who bring a network of their own: one sentence with the way out, on both ways in."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from solverdistill import wrap
from solverdistill.support.instantiate import instantiate
from tests.commands import run_here
from tests.integration.test_train import TINY

# Loaders, one for every mistake; each returns a network of 2 x 5 samples.
MODULE = '''
import torch
from torch import nn

LAYER = nn.Linear(5, 5)


def function():
    return lambda x, time: LAYER(x) * time[:, None]


def itself(x, time):
    return LAYER(x)


class Labelled(nn.Module):
    def __init__(self, optional=False):
        super().__init__()
        self.layer, self.labels, self.optional = nn.Linear(5, 5), nn.Embedding(4, 5), optional

    def forward(self, x, time, label):
        return self.layer(x) + self.labels(label)


class Unsaid(Labelled):
    def forward(self, x, time, label=None):
        return super().forward(x, time, label)


class Columns(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x, time):
        return self.layer(torch.cat([x, time], dim=1))


class Bare(nn.Module):
    """Keeps its weights where no module finds them."""

    def forward(self, x, time):
        return LAYER(x)


class NoGrad(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x, time):
        with torch.no_grad():
            return self.layer(x)
'''
SETTINGS: dict[str, Any] = {"shape": [5], "prediction": "flow", "noise_schedule": "flow"}
MISTAKES = {
    "label": ("Labelled", {}, "cannot be called with (x, time): missing a required argument: 'label'; say in call="),
    "label unsaid": ("Unsaid", {}, "; it takes label too, which call= can name and num_classes= make"),
    "columns": ("Columns", {}, "takes times of shape (batch, 1): say time_shape=[1]"),
    "columns unwanted": ("Labelled", {"time_shape": [2]}, "model.time_shape [2] must list ones, as [1] for times"),
    "sigma": ("NoGrad", {"noise_range": [80.0, 0.002]}, "for sigma / alpha say model.noise_range_sigma=[80,0.002]"),
    "indices": ("NoGrad", {"noise_range": [999, 0]}, "begins at 999, but levels of the flow schedule are times"),
    "both ranges": (
        "NoGrad",
        {"noise_range": [1.0, 0.1], "noise_range_sigma": [80.0, 0.1]},
        "model.noise_range and model.noise_range_sigma say the same; give one of them",
    ),
    "rising": ("NoGrad", {"noise_range": [0.002, 1.0]}, "must be two numbers, the largest level and the smallest"),
    "beyond": (
        "NoGrad",
        {"noise_schedule": "vp", "noise_range_sigma": [1000.0, 0.01]},
        "model.noise_range_sigma begins at 1000, and the vp schedule at 152.",
    ),
    "integer": ("NoGrad", {"shape": 28}, "model.shape=28 must list the sizes of one sample without the batch"),
    "no size": ("NoGrad", {"shape": []}, "model.shape=[] must list the sizes of one sample"),
}  # fmt: skip


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_networks.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    return tmp_path


def words(name: str, changes: dict[str, Any]) -> list[str]:
    """Overrides that say what keyword arguments of `wrap` say."""
    said = {"target": f"own_networks.{name}", **SETTINGS, **changes}
    return ["model=callable", *(f"model.{key}={str(value).replace(' ', '')}" for key, value in said.items())]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_on_both_ways(mistake: str, networks: Path) -> None:
    import own_networks  # pyright: ignore[reportMissingImports]

    name, changes, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        wrap(getattr(own_networks, name)(), **{**SETTINGS, **changes})
    ran = run_here(networks, "train.py", "solver=dss", *words(name, changes))
    assert ran.returncode == 2 and ran.stdout == ""
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith("error: model of the configuration cannot be made: ") and sentence in line


def test_a_networks_own_function_as_the_target_is_told(networks: Path) -> None:
    ran = run_here(networks, "train.py", "solver=dss", *words("itself", {}))
    assert ran.returncode == 2
    assert "own_networks.itself cannot be called with no model.arguments (missing a required" in ran.stderr
    assert ran.stderr.strip().endswith("that returns the network, not the network's own function")


def test_what_has_no_weights_to_tell_its_dtype_is_found_out(networks: Path) -> None:
    settings = {"_target_": "solverdistill.teachers.own.load.load_own", **SETTINGS}
    x, half = torch.randn(3, 5, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    for name in ("function", "Bare"):  # the network is in float32, references are solved in float64
        teacher = instantiate({**settings, "target": f"own_networks.{name}"})
        assert teacher.dtype == torch.float32 and teacher(x, half, half).dtype == torch.float64
    ran = run_here(networks, "train.py", "solver=dss", *words("function", {}), *TINY, "hydra.run.dir=run")
    assert ran.returncode == 0, ran.stderr
    assert (networks / "run" / "solver.json").is_file()


def test_times_as_columns_are_a_setting(networks: Path) -> None:
    import own_networks  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    network = own_networks.Columns()
    settings = {**SETTINGS, "noise_range": [0.9, 0.1]}
    x, alpha, sigma = torch.randn(3, 5), torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.1, 0.5, 0.8])
    column = wrap(network, **settings, time_shape=[1], name="same")
    expected = wrap(lambda x, time: network(x, time[:, None]), **settings, name="same")
    torch.testing.assert_close(column(x, alpha, sigma), expected(x, alpha, sigma), rtol=0, atol=0)
    assert column.description()["time_shape"] == (1,) and "time_shape" not in expected.description()
    assert {other.convention.time_shape for other in column.variants().values()} == {(1,)}
    made = instantiate(
        {
            "_target_": "solverdistill.teachers.own.load.load_own",
            "target": "own_networks.Columns",
            **settings,
            "time_shape": 1,
        }
    )
    made.network.network.load_state_dict(network.state_dict())
    torch.testing.assert_close(made(x, alpha, sigma), column(x, alpha, sigma), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["flow", {"name": "flow", "shift": 3.0}, "vp", "discrete", "edm"])
def test_a_range_of_sigmas_is_converted_to_the_schedules_own_unit(schedule: Any, networks: Path) -> None:
    settings = {**SETTINGS, "prediction": "denoised", "noise_schedule": schedule, "noise_range_sigma": [12.0, 0.05]}
    teacher = wrap(lambda x, time: x, **settings)
    for level, sigma in zip(teacher.noise_range, (12.0, 0.05), strict=True):
        found = teacher.path.level(level)
        assert float(found.sigma / found.alpha) == pytest.approx(sigma, rel=1e-9)
    if schedule == "flow":
        assert teacher.noise_range == pytest.approx((12 / 13, 0.05 / 1.05), rel=1e-12)


def test_a_grid_of_sigmas_on_a_flow_is_told(networks: Path) -> None:
    for grid in (["+solver.grid.start=80.0"], ["~solver.grid", "+solver.grid=[80.0,9.0,1.5,0.3,0.01]"]):
        ran = run_here(networks, "train.py", "solver=corrected", "solver.nfe=4", *words("function", {}), *grid)
        assert ran.returncode == 2
        assert (
            "level 80 is no time of the flow path, whose levels go from 1 (noise) to 0; where sigma / alpha is 80"
            in ran.stderr
        )
        assert "its time is 0.987654" in ran.stderr


def test_a_network_that_keeps_its_gradients_is_told_on_both_ways(networks: Path) -> None:
    import own_networks  # pyright: ignore[reportMissingImports]

    sentence = r"no gradient reaches the input of .*: take torch.no_grad\(\).* out of it, or take fits .*\(fit=race\)"
    with pytest.warns(UserWarning, match=sentence):
        wrap(own_networks.NoGrad(), **SETTINGS)
    with pytest.warns(UserWarning, match=sentence):
        instantiate(
            {"_target_": "solverdistill.teachers.own.load.load_own", "target": "own_networks.NoGrad", **SETTINGS}
        )
