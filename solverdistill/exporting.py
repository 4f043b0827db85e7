"""What a fit leaves behind: solver files that say where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from solverdistill import __version__
from solverdistill.coefficients import save_solver
from solverdistill.denoiser import Teacher
from solverdistill.families.base import Family, Params
from solverdistill.fits import Fitted
from solverdistill.targets import TargetSettings


def make_provenance(
    config: Mapping[str, Any], teacher: Teacher, settings: TargetSettings, fitted: Fitted
) -> dict[str, Any]:
    """Where a solver comes from, as its file says it.

    Args:
        config: The whole configuration of the run, as plain mappings and numbers.
        teacher: The frozen network.
        settings: What the targets were made with.
        fitted: The result.
    """
    places = ("output_dir", "run_name", "ckpt_path", "logger", "trainer")  # where, not what
    facts = {name: value for name, value in config.items() if name not in places}
    facts["targets"] = {name: value for name, value in config["targets"].items() if name != "cache"}
    return {
        "teacher": {**teacher.description(), "fingerprint": teacher.fingerprint()},
        "guidance": float(config["guidance"]),
        "reference": {name: value for name, value in asdict(settings.reference).items() if value is not None},
        "fit": config["fit"],
        "objective": None if config["fit"]["kind"] == "greedy" else config["objective"],
        "metrics": {"validation_rmse": fitted.rmse},
        "config_digest": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16],
        "version": __version__,
    }


def export(output: Path, family: Family, fitted: Fitted, provenance: Mapping[str, Any]) -> None:
    """Write solver.json (best state) and solver-last.json (last state)."""
    states: dict[str, Params] = {"solver.json": fitted.best, "solver-last.json": fitted.last}
    for name, params in states.items():
        save_solver(output / name, family.program(params), family.hyperparameters(), params, provenance)
