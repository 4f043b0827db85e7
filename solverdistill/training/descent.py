"""Objective, optimizer and learning rates of a fit with an optimizer, from their configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import torch

from solverdistill.denoisers.base import Teacher
from solverdistill.support.instantiate import instantiate
from solverdistill.support.type_checks import is_number

OWN = ("lr_of", "cosine", "final_lr")  # settings of an optimizer that are ours


def make_objective(options: Mapping[str, Any], teacher: Teacher) -> Any:
    """Build the objective; one that looks at images looks at those that a latent teacher decodes."""
    objective: Any = instantiate(options, "objective")
    takes_it = "decode" in getattr(objective, "__dataclass_fields__", ())
    if not takes_it or type(teacher).decode is Teacher.decode:
        return objective
    return replace(objective, decode=teacher.decode)


def make_optimizer(
    options: Mapping[str, Any],
) -> Callable[[Iterable[tuple[str, torch.nn.Parameter]]], torch.optim.Optimizer]:
    """Build the optimizer's factory; `lr_of` maps patterns of param names to learning rates of their own.

    Raises:
        ValueError: the optimizer does not take one of the options, or a learning rate is negative or not finite.
    """
    rates: Mapping[str, float] = options.get("lr_of") or {}
    stated = {name: options[name] for name in ("lr", "final_lr") if options.get(name) is not None}
    for name, rate in {**stated, **{f"lr_of.{pattern}": rate for pattern, rate in rates.items()}}.items():
        if not is_number(rate) or rate < 0:
            raise ValueError(f"optimizer.{name} must be a finite number of at least 0, not {rate!r}")
    make = instantiate({name: value for name, value in options.items() if name not in OWN}, "optimizer")

    def build(named: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for name, value in named:
            own = [rate for pattern, rate in rates.items() if fnmatch(name, pattern)]
            groups.append({"params": [value], **({"lr": own[0]} if own else {})})
        try:
            return make(groups)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"optimizer of the configuration cannot be made: {error}") from None

    return build


def make_schedule(options: Mapping[str, Any]) -> Callable[[torch.optim.Optimizer, int], Any] | None:
    """Cosine decay over a number of steps where `cosine` asks for it, or None."""
    if not options.get("cosine", False):
        return None
    final = options.get("final_lr", 0.0)

    def build(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=final)

    return build


def refuse_unused(stated: Iterable[str], fits: Iterable[str]) -> None:
    """Refuse an objective or an optimizer that no chosen fit would look at.

    Args:
        stated: Settings that were stated, each beginning with its group.
        fits: Names of the fits, none of which has an optimizer.
    Raises:
        ValueError: there is one; the message says which fit would.
    """
    chosen = ",".join(fits)
    for setting in stated:
        group = setting.split("=")[0].split(".")[0]
        if group in ("objective", "optimizer"):
            raise ValueError(
                f"{setting}: only gradient descent has an {group}, and this run has fit=[{chosen}]; "
                f"add it with fit=[{chosen},gradient]"
            )
