"""Where the shipped configurations lie: inside the package in a wheel, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def find_configs() -> Path:
    """The folder of the shipped configurations, in a checkout, an editable install and a wheel.

    Raises:
        FileNotFoundError: there is none; the installation is damaged.
    """
    # The inner one first: what lies beside an installed package belongs to others.
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "train.yaml").is_file() and (folder / "solver").is_dir():
            return folder
    raise FileNotFoundError(f"the configurations of solverdistill are not in {PACKAGE / 'configs'}; install it again")
