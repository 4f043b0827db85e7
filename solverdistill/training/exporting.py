"""What a fit leaves behind: solver files that say where they come from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import GuidanceRule
from solverdistill.families.base import Family, Params
from solverdistill.fits.report import KINDS, Cost, FitReport
from solverdistill.programs.solver_file import save_solver
from solverdistill.references.choice import Choice
from solverdistill.support.files import write_atomically
from solverdistill.version import __version__


def make_provenance(
    config: Mapping[str, Any], teacher: Teacher, choice: Choice, reports: Sequence[FitReport]
) -> dict[str, Any]:
    """Where a solver comes from, as its file says it.

    Args:
        config: The whole configuration of the run, as plain mappings and numbers.
        teacher: The frozen network.
        choice: The reference, and what is known of its error.
        reports: What the fits did, the last one last.
    """
    places = ("output_dir", "run_name", "ckpt_path", "logger", "trainer")  # where, not what
    facts = {name: value for name, value in config.items() if name not in places}
    rmse = min((report.rmse for report in reports if report.history), default=math.inf)
    facts["targets"] = {name: value for name, value in config["targets"].items() if name != "cache"}
    return {
        "teacher": {**teacher.description(), "fingerprint": teacher.fingerprint()},
        "guidance": GuidanceRule.of(config["guidance"]).description(),
        "reference": {name: value for name, value in asdict(choice.reference).items() if value is not None}
        | choice.facts,
        "fit": config["fit"],
        **({} if config.get("budget") is None else {"budget": budget_of(config)}),
        "objective": config["objective"] if any(report.fit == "gradient" for report in reports) else None,
        "metrics": {"validation_rmse": rmse if math.isfinite(rmse) else None},
        "evaluations": {report.fit: report.evaluations for report in reports},
        "config_digest": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16],
        "version": __version__,
    }


def budget_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was allowed to cost; its plan is in the settings of targets and fits."""
    return {"asked": config["budget"], "evaluations": config["planned_evaluations"]}


def export(output: Path, family: Family, best: Params, last: Params, provenance: Mapping[str, Any]) -> None:
    """Write solver.json (best state) and solver-last.json (last state)."""
    for name, params in {"solver.json": best, "solver-last.json": last}.items():
        save_solver(output / name, family.program(params), family.hyperparameters(), params, provenance)


def write_reports(path: Path, reports: Sequence[FitReport]) -> None:
    """Write how every fit came down: a line per state kept, with what the fit had spent until then, as CSV.

    Columns: fit, rmse, all its evaluations (in forward equivalents) and seconds; then both by kind of work. The
    teacher's begin with what the references cost that were made before all fits, none where they were cached.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    by_kind = [f"{kind}_{what}" for kind in KINDS for what in Cost._fields]
    writer.writerow(["fit", "rmse", "evaluations", "seconds", *by_kind])
    made = [report.spent["teacher"] for report in reports if not report.history]
    evaluations, seconds = sum(cost.evaluations for cost in made), sum(cost.seconds for cost in made)
    for report in reports:
        for point in report.history:
            teacher, *student = point.spent or (Cost(),) * len(KINDS)
            costs = [Cost(teacher.evaluations + evaluations, teacher.seconds + seconds), *student]
            writer.writerow([report.fit, *point[:3], *(number for cost in costs for number in cost)])
    write_atomically(path, stream.getvalue())
