"""Where the shipped configurations lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def find_configs() -> Path:
    """The folder of the shipped configurations, in a checkout, an editable install and a wheel.

    Raises:
        FileNotFoundError: there is none; the installation is damaged.
    """
    for folder in (PACKAGE.parent / "configs", PACKAGE / "configs"):
        if (folder / "train.yaml").is_file() and (folder / "solver").is_dir():
            return folder
    raise FileNotFoundError(f"the configurations of solverdistill are not in {PACKAGE / 'configs'}; install it again")
