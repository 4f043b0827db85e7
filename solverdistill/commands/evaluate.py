"""Evaluate solver files beside classical solvers: one table, figures, and one HTML file to pass on.

    solverdistill evaluate model=edm_digits solvers=[outputs/a/solver.json,outputs/b/solver.json]
    solverdistill evaluate model=edm_digits solvers=[a.json] baselines=[ipndm,unipc] nfe=[4,6,8] samples=10000
    solverdistill evaluate model=edm_digits baselines=[heun] nfe=[8] extractor=fid real=a/folder samples=50000
    torchrun --nproc_per_node=2 -m solverdistill evaluate model=edm_digits solvers=[a.json] samples=50000

Paired errors (RMSE, PSNR, SSIM, LPIPS) are against the reference solve of the same noise, distances between sets (FID
or FD, kernel distance, precision, recall) against real images. Samples are made and measured batch by batch, so memory
does not grow with their number; with several processes each takes a part.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from solverdistill.commands.entry import command

OWN = ("model", "targets", "device", "output_dir")


@command("evaluate")
def main(config: dict[str, Any]) -> None:
    """Measure in all processes, and write in the first."""
    from solverdistill.evaluation.evaluate import evaluate
    from solverdistill.evaluation.plan import EvaluationPlan
    from solverdistill.support.instantiate import instantiate
    from solverdistill.support.processes import join_processes, leave_processes, pick_device, processes
    from solverdistill.support.progress import TargetProgress
    from solverdistill.training.configuration import make_target_settings

    options = {name: value for name, value in config.items() if name not in OWN}
    plan = EvaluationPlan(**{**options, "extractor": instantiate(options["extractor"], "extractor")})
    targets, teacher = make_target_settings(config["targets"]), instantiate(config["model"], "model")
    several = join_processes()
    first = processes()[0] == 0
    logging.getLogger("solverdistill").setLevel(logging.INFO if first else logging.WARNING)
    found = evaluate(plan, teacher, targets, pick_device(config["device"]), TargetProgress if first else None)
    if first:
        show(found, Path(config["output_dir"]), teacher.name)
    if several:
        leave_processes()


def show(found: Any, output: Path, teacher: str) -> None:
    """Print the table and write the files."""
    from solverdistill.evaluation.reports.publishing import publish
    from solverdistill.evaluation.reports.table_layout import NARROW, by_nfe
    from solverdistill.evaluation.reports.terminal_table import print_table
    from solverdistill.support.progress import console

    screen = console()
    table = by_nfe([measured.row for measured in found.measured], NARROW)
    print_table(screen, table, found.names)
    for sentence in found.warnings:
        screen.print(f"note: {sentence}", soft_wrap=True)
    publish(found, output, f"Solvers for {teacher}")
    screen.print(f"report.html, metrics.csv, metrics.md and figures are in {output}", soft_wrap=True)


if __name__ == "__main__":
    main()
