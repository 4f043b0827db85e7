"""Own models end to end: the page's example, integer times in training and in the file, the self-check's command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from solverdistill import families, read_solver, sample
from solverdistill.teachers.own.integer_times import snap_program
from solverdistill.teachers.own.load import load_own
from solverdistill.training.run import train
from tests.commands import run_alone, run_here
from tests.integration.test_docs import FEW_SAMPLES, TWO_STEPS, fences
from tests.integration.test_train import composed

ROOT = Path(__file__).parents[2]
PAGE = "docs/bring-your-own-model.md"
LOADED: list[nn.Module] = []


class Table(nn.Module):
    """A network with integer times, batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.norm, self.drop = nn.Embedding(100, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.out = nn.Linear(6, 6)
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        assert time.dtype == torch.int64 and not self.training
        self.told.append(time)
        return self.out(self.drop(self.norm(torch.tanh(x + self.times(time)))))


def load_table() -> Table:
    """What the training run names as its target."""
    torch.manual_seed(0)
    LOADED.append(Table())
    return LOADED[-1]


def test_what_is_trained_with_integer_times_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path / "home"))
    schedule = "{name:discrete,beta_schedule:linear,beta_start:1e-3,beta_end:0.2,steps:100}"
    settings = ["model=callable", f"model.target={__name__}.load_table", "model.shape=[6]", "model.prediction=eps"]
    settings += [f"model.noise_schedule={schedule}", "model.discrete_times=true", "solver=ld3"]
    before = {key: value.clone() for key, value in load_table().state_dict().items()}
    config = composed(tmp_path / "run", *settings)
    train(config)
    network = LOADED[-1]
    assert isinstance(network, Table) and len(network.told) > 0
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())

    from hydra.utils import instantiate

    teacher = instantiate(config.model)
    read = read_solver(tmp_path / "run" / "solver.json")
    assert read.provenance["teacher"]["discrete_times"] is True
    family = families.build(**{key: value for key, value in read.family.items() if key != "params"})
    noise = torch.randn(4, 6)
    teacher.network.network.told.clear()  # what it was asked when it was loaded
    trained = sample(family.program(read.params).detach(), teacher, noise)
    played = sample(read.program, teacher, noise)
    assert torch.equal(played, trained)
    told = teacher.network.network.told
    half = len(told) // 2
    assert torch.equal(torch.cat(told[:half]), torch.cat(told[half:]))
    snapped = snap_program(read.program, teacher.description())
    torch.testing.assert_close(sample(snapped, teacher, noise.double()), sample(read.program, teacher, noise.double()))


@pytest.mark.slow
def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, function, module = fences(PAGE, "python")
    names: dict[str, object] = {}
    exec(compile(live, PAGE, "exec"), names)
    denoised, net = names["denoised"], names["net"]
    assert isinstance(denoised, Tensor) and denoised.shape == (8, 2) and bool(denoised.isfinite().all())
    assert isinstance(net, nn.Module) and net.training
    exec(compile(function, PAGE, "exec"), names)
    again = names["teacher"](names["x"], names["alpha"], names["sigma"])  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(again, denoised)

    (tmp_path / "my_package.py").write_text(module, encoding="utf-8")
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    teacher = load_own("my_package.load", [2], "eps", "vp", arguments={"weights": "weights.pt"})
    torch.testing.assert_close(teacher(names["x"], names["alpha"], names["sigma"]), denoised)

    check, distil = (line.split() for line in fences(PAGE, "sh")[0].splitlines())
    checked = run_here(tmp_path, *check[1:])
    assert checked.returncode == 1, checked.stderr  # random weights denoise nothing
    assert "wrong: " in checked.stdout and "Error over noise levels" in checked.stdout
    trained = run_alone(tmp_path, *distil[1:], "hydra.run.dir=run", *TWO_STEPS, *FEW_SAMPLES)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    teacher = read_solver(tmp_path / "run" / "solver.json").provenance["teacher"]
    assert teacher["name"] == "my_package.load" and teacher["path"]["name"] == "vp"


def test_the_yaml_of_the_page_composes_to_the_same_settings() -> None:
    (block,) = fences(PAGE, "yaml")
    own = yaml.safe_load(block)
    assert own.pop("defaults") == ["callable"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        overrides = [word for word in fences(PAGE, "sh")[0].splitlines()[1].split()[2:]]
        config = compose("train", overrides=overrides)
    for key, value in own.items():
        assert config.model[key] == value, key


@pytest.mark.slow
def test_the_check_is_a_command(tmp_path: Path) -> None:
    script = "scripts/check_teacher.py"
    ran = run_alone(tmp_path, script, "model=mixture", "+check.samples=8")
    assert ran.returncode == 0, ran.stderr
    assert "mixture: nothing is wrong" in ran.stdout
    for more, sentence in (
        ("+check.sample=8", "error: check.sample is unknown; known: data, labels, samples, seed, device"),
        ("+check.data=none.npy", "error: samples none.npy do not exist"),
    ):
        ran = run_here(tmp_path, script, "model=mixture", more)
        assert ran.returncode == 2 and ran.stderr.strip() == sentence
