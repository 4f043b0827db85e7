"""What a number of evaluations is spent on."""

from __future__ import annotations

from typing import Any


def settings_of(budget: int, batch: int, gradients: bool) -> dict[str, Any]:
    """Settings of `distill` that take no more than `budget` evaluations.

    Args:
        budget: Evaluations of the network.
        batch: Samples whose network graphs are in memory at once.
        gradients: Whether the fit may take derivatives of the network.
    """
    last = {"gauss_newton": {"batch_size": batch, "checkpointing": True}} if gradients else {"least_squares": None}
    return {
        "solver": "corrected",
        "budget": f"{budget}evals",
        "targets": {"cache": None},
        "fit": {"race": None, **last},
    }
