"""The commands of docs/results.md compose: the teacher's description, the fits, the evaluation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scripts.benchmarks.mnist_ddpm import MnistDDPM
from solverdistill.evaluation.plan import EvaluationPlan
from solverdistill.training.configuration import Run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def overrides(start: str, end: str) -> list[str]:
    """The words of a command of the page between two marks that set something, without the shell's own."""
    text = PAGE[PAGE.index(start) + len(start) : PAGE.index(end, PAGE.index(start))].replace("\\\n", " ")
    return [word for word in shlex.split(text) if "=" in word and "$" not in word and not word.startswith("--")]


@pytest.fixture
def teacher(tmp_path: Path) -> list[str]:
    """Settings of the page's teacher, with weights that were never trained."""
    torch.save(MnistDDPM().state_dict(), tmp_path / "model.pth")
    return [word.replace("WEIGHTS", str(tmp_path / "model.pth")) for word in overrides("TEACHER=(", ")\npython")]


def composed(name: str, settings: list[str]) -> Any:
    settings = [word for word in settings if not word.startswith("hydra.")]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, overrides=[*settings, "output_dir=."])


def plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=True)


def test_every_run_of_the_page_is_one(teacher: list[str]) -> None:
    runs = re.search(r"for run in (.*); do", PAGE)
    assert runs is not None and len(runs[1].split()) >= 8
    settings = overrides('train.py "${TEACHER[@]}"', "done")
    for name in runs[1].split():
        solver, nfe = name.split("-")
        chosen = [*teacher, *settings, "run_name=test", f"solver={solver}", f"solver.nfe={nfe}"]
        run = Run.of(plain(composed("train", chosen)))
        assert run.student.family.nfe == int(nfe) and run.teacher.shape == (1, 28, 28)
        assert re.search(rf"^\| \*{solver}\* \| {nfe} \|", PAGE, re.M), f"{name} is not in the table"


def test_the_evaluation_of_the_page_composes(teacher: list[str]) -> None:
    settings = overrides('scripts/evaluate.py "${TEACHER[@]}"', "```")
    config = composed("evaluate", [*teacher, *settings])
    assert config.extractor._target_ == "scripts.benchmarks.mnist_classifier.load"
    plain: Any = OmegaConf.to_container(config, resolve=False)
    names = ("baselines", "nfe", "samples", "data_range", "real")
    plan = EvaluationPlan(**{name: plain[name] for name in names})
    assert plan.samples > 32 and plan.data_range == [-0.5, 0.5] and instantiate(config.model).name == "mnist_ddpm"
