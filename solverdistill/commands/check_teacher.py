"""Say whether a teacher's settings are right: prediction type, time, scaling, noise range, gradients.

    python scripts/check_teacher.py model=edm_digits
    python scripts/check_teacher.py model=callable model.target=my_package.load ... +check.data=images.npy

Measures on samples that the teacher generates, or better on a few real ones: .npy, .pt or .safetensors with one tensor
of shape (samples, *shape), in the network's own data units (8-bit integers become [-1, 1]), or a folder of images.
Settings under `+check.`: data, labels (a file of integers), samples, seed, device. Ends with 0 if nothing is wrong,
with 1 if something is.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from solverdistill.training.config_files import find_configs

# No output folder of its own: the table is the output.
NO_FOLDER = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none")
COLOURS = {"right": "green", "wrong": "bold red", "note": "yellow"}


@hydra.main(version_base="1.3", config_path=str(find_configs()), config_name="train")
def main(config: DictConfig) -> None:
    """Check a teacher; a mistake in the settings is told in one sentence."""
    from solverdistill.support.mistakes import say_and_exit

    try:
        wrong = check(config)
    except Exception as error:
        say_and_exit(error)
    sys.exit(1 if wrong else 0)


def check(config: DictConfig) -> int:
    """Print the findings as a table; returns how many settings are wrong."""
    from solverdistill.teachers.checking.check import check_teacher, make_bench

    with open_dict(config):
        options: Any = OmegaConf.to_container(OmegaConf.create(config.pop("check", {})), resolve=True)
    teacher = hydra.utils.instantiate(config.model)
    bench = make_bench(teacher, options)
    findings, curve = check_teacher(bench)
    show(teacher.name, findings, curve)
    return sum(finding.verdict == "wrong" for finding in findings)


def show(name: str, findings: Any, curve: Any) -> None:
    """Two tables: the findings, and the errors over noise levels."""
    from rich.table import Table

    from solverdistill.support.progress import console

    table = Table(title=f"Checks of {name}", title_justify="left")
    for column in ("check", "verdict", "measured", ""):
        table.add_column(column, overflow="fold")
    for finding in findings:
        colour = COLOURS[finding.verdict]
        table.add_row(finding.check, f"[{colour}]{finding.verdict}[/]", finding.measured, finding.sentence)
    console().print(table)
    errors = Table(title="Error over noise levels, in deviations of the data", title_justify="left")
    for column in ("level", "noisy sample", "denoised"):
        errors.add_column(column, justify="right")
    for level, ratio, error in zip(curve.levels, curve.ratio, curve.error, strict=True):
        errors.add_row(f"{level:.4g}", f"{ratio:.3g}", f"{error:.3g}")
    console().print(errors)
    wrong = [finding.check for finding in findings if finding.verdict == "wrong"]
    verdict = f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong"
    console().print(f"{name}: {verdict}")


if __name__ == "__main__":
    from solverdistill.support.mistakes import say_and_exit

    os.environ.setdefault("SOLVERDISTILL_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then lets exceptions through, for one sentence instead of six lines
    sys.argv[1:1] = NO_FOLDER
    try:
        main()
    except Exception as error:
        say_and_exit(error)
