"""Say whether a teacher's settings are right: prediction type, time, scaling, noise range, gradients.

    solverdistill check-teacher model=edm_digits
    solverdistill check-teacher model=callable model.target=my_package.load ... +check.data=images.npy

Measures on samples that the teacher generates, or better on a few real ones: .npy, .pt or .safetensors with one tensor
of shape (samples, *shape), in the network's own data units (8-bit integers become [-1, 1]), or a folder of images.
Settings under `+check.`: data, labels (a file of integers), samples, seed, device. Ends with 0 if nothing is wrong,
with 1 if something is.
"""

from __future__ import annotations

import sys
from typing import Any

from solverdistill.commands.entry import command

COLOURS = {"right": "green", "wrong": "bold red", "note": "yellow"}


@command("train", log_to="none")
def main(config: dict[str, Any]) -> None:
    """Print the findings as a table; the exit code says whether a setting is wrong."""
    from solverdistill.support.instantiate import instantiate
    from solverdistill.teachers.checking.check import check_teacher, make_bench

    teacher = instantiate(config["model"], "model")
    bench = make_bench(teacher, config.get("check", {}))
    findings, curve = check_teacher(bench)
    show(teacher.name, findings, curve)
    sys.exit(1 if any(finding.verdict == "wrong" for finding in findings) else 0)


def show(name: str, findings: Any, curve: Any) -> None:
    """Two tables: the findings, and the errors over noise levels."""
    from rich.table import Table

    from solverdistill.support.progress import console

    table = Table(title=f"Checks of {name}", title_justify="left")
    for column in ("check", "verdict", "how sure", "measured", ""):
        table.add_column(column, overflow="fold")
    for finding in findings:
        colour = COLOURS[finding.verdict]
        table.add_row(
            finding.check, f"[{colour}]{finding.verdict}[/]", finding.sure, finding.measured, finding.sentence
        )
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
    main()
