"""What a number of evaluations is spent on."""

from __future__ import annotations

from typing import Any

STEPS = 20  # of the reference solver


def settings_of(budget: int, nfe: int, batch: int, gradients: bool) -> dict[str, Any]:
    """Settings of `distill` that take about `budget` evaluations.

    Args:
        budget: Evaluations of the network.
        nfe: Evaluations per sample of the solver.
        batch: Samples whose network graphs are in memory at once.
        gradients: Whether the fit may take derivatives of the network.
    """
    rest = budget // 2 if gradients else budget
    solved = max(8, rest // 4 // STEPS)
    held_out = max(2, solved // 4)
    train = solved - held_out
    targets = {
        "reference": {"solver": "ipndm", "steps": STEPS, "grid": "polynomial"},
        "train_samples": train,
        "validation_samples": held_out,
        "cache": None,
        "chunk": min(8, held_out),
    }
    small = rest < 500 * nfe
    race = {"first": 2, "survivors": 2 if small else 4, "gits": not small}
    fit: dict[str, Any] = {"race": race, "least_squares": {"samples": train}}
    if gradients:
        sizes = {"samples": train, "batch_size": min(batch, train), "checkpointing": True}
        fit["gauss_newton"] = {**sizes, "evaluations": budget // 2}
    return {"solver": "corrected", "targets": targets, "fit": fit}
