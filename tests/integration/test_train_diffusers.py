"""Training on teachers of diffusers from the command line's configuration, on tiny pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from solverdistill import read_solver, sample
from solverdistill.training.run import train
from tests.integration.test_train import composed
from tests.pipeline_folders import PIPELINES

FLOAT32 = ["model.weights_dtype=float32", "model.variant=null", "model.running.dtype=float32"]
RULE = "guidance={scale: [2.0, 4.0], interval: [0.9, 0.2], channels: 3}"
KINDS = {"sd15": "stable_diffusion", "sd3": "stable_diffusion_3"}


@pytest.mark.parametrize(
    ("model", "path", "extra"),
    [
        ("sd15", "discrete", ["solver=epd", "solver.nfe=5", "guidance=3.0", "model.prompts=[a cat,red dog]"]),
        (
            "sd15",
            "discrete",
            ["solver=dss", "solver.nfe=3", RULE, "model.prompts=[a cat,red dog]", "targets.cache=null"],
        ),
        ("sd3", "flow", ["solver=dss", "solver.nfe=4", "model.prompts=[rain]"]),
    ],
)
def test_two_steps_on_a_tiny_pipeline(
    model: str, path: str, extra: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path / "home"))
    folder = PIPELINES[KINDS[model]](tmp_path / "pipeline")
    overrides = [f"model={model}", f"model.weights={folder}", "targets.reference.steps=8", *FLOAT32, *extra]
    train(composed(tmp_path / "run", *overrides))
    solved = read_solver(tmp_path / "run" / "solver.json")
    facts = solved.provenance["teacher"]
    assert facts["name"] == model and facts["path"]["name"] == path
    assert facts["prompts"] == (2 if model == "sd15" else 1)
    assert str(tmp_path) not in (tmp_path / "run" / "solver.json").read_text()
    states = sample(solved.program, lambda x, alpha, sigma: x, torch.randn(2, 4, 8, 8), readouts=True)
    assert bool(torch.isfinite(states).all())
