"""Evaluate solver files beside classical solvers: one table, figures, and one HTML file to pass on.

    python scripts/evaluate.py model=edm_digits solvers=[outputs/a/solver.json,outputs/b/solver.json]
    python scripts/evaluate.py model=edm_digits solvers=[a.json] baselines=[ipndm,unipc] nfe=[4,6,8] samples=10000
    python scripts/evaluate.py model=edm_digits baselines=[heun] nfe=[8] extractor=fid real=a/folder samples=50000
    torchrun --nproc_per_node=2 scripts/evaluate.py model=edm_digits solvers=[a.json] samples=50000

Paired errors (RMSE, PSNR, SSIM, LPIPS) are against the reference solve of the same noise, distances between sets (FID
or FD, kernel distance, precision, recall) against real images. Samples are made and measured batch by batch, so memory
does not grow with their number; with several processes each takes a part.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as train.py

import hydra  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from solverdistill.training.config_files import find_configs  # noqa: E402

OWN = ("model", "targets", "device", "output_dir")


@hydra.main(version_base="1.3", config_path=str(find_configs()), config_name="evaluate")
def main(config: DictConfig) -> None:
    """Evaluate; a mistake in the settings is told in one sentence."""
    from solverdistill.support.mistakes import say_and_exit

    try:
        run(config)
    except Exception as error:
        say_and_exit(error, output_dir=str(config.output_dir))


def run(config: DictConfig) -> None:
    """Measure in all processes, and write in the first."""
    from solverdistill.evaluation.evaluate import evaluate
    from solverdistill.evaluation.plan import EvaluationPlan
    from solverdistill.references.solving import Reference
    from solverdistill.references.targets import TargetSettings
    from solverdistill.support.processes import join_processes, leave_processes, pick_device, processes
    from solverdistill.support.progress import TargetProgress

    plain: Any = OmegaConf.to_container(config, resolve=True)
    options = {name: value for name, value in plain.items() if name not in OWN}
    if isinstance(options["extractor"], dict):
        options["extractor"] = hydra.utils.instantiate(config.extractor)
    plan = EvaluationPlan(**options)
    targets = TargetSettings(**{**plain["targets"], "reference": Reference(**plain["targets"]["reference"])})
    teacher = hydra.utils.instantiate(config.model)
    several = join_processes()
    first = processes()[0] == 0
    logging.getLogger("solverdistill").setLevel(logging.INFO if first else logging.WARNING)
    found = evaluate(plan, teacher, targets, pick_device(config.device), TargetProgress if first else None)
    if first:
        show(found, Path(config.output_dir), teacher.name)
    if several:
        leave_processes()


def show(found: Any, output: Path, teacher: str) -> None:
    """Print the table and write the files."""
    from solverdistill.evaluation.reports.publishing import publish
    from solverdistill.evaluation.reports.table_layout import NARROW, by_nfe
    from solverdistill.evaluation.reports.terminal_table import terminal_table
    from solverdistill.support.progress import console

    screen = console()
    table = by_nfe([measured.row for measured in found.measured], NARROW)
    screen.print(terminal_table(table, found.names, plain=not screen.is_terminal))
    for sentence in found.warnings:
        screen.print(f"note: {sentence}", soft_wrap=True)
    publish(found, output, f"Solvers for {teacher}")
    screen.print(f"report.html, metrics.csv, metrics.md and figures are in {output}", soft_wrap=True)


if __name__ == "__main__":
    from solverdistill.support.mistakes import say_and_exit
    from solverdistill.training.launch import other_rank_arguments

    sys.argv += other_rank_arguments()
    sys.path.append(os.getcwd())  # where a network of your own lies
    os.environ.setdefault("SOLVERDISTILL_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then lets exceptions through, for one sentence instead of six lines
    try:
        main()
    except Exception as error:
        say_and_exit(error)
