"""What a run shows while it works: rich bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """The terminal or notebook that a run prints to; bars move in a notebook where ipywidgets is installed."""
    from rich.console import Console

    widgets = None if find_spec("ipywidgets") else False
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, force_jupyter=widgets)


class TargetProgress:
    """Shows how many reference trajectories of a split are done, or how far another work is that comes in parts.

    Args:
        what: What the work is about.
    """

    def __init__(self, what: str = "reference trajectories") -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        self._split = ""

    def __call__(self, split: str, done: int, total: int) -> None:
        """Report that `done` of the `total` of a part are done."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if split != self._split:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console())
            self._task = self._bar.add_task(f"{self._what} ({split})", total=total)
            self._split = split
            self._bar.start()
        self._bar.update(self._task, completed=done)
        if done >= total:
            self._bar.stop()
            self._split = ""


class FitProgress:
    """Shows the iterations of a fit without an optimizer, with its held-out error.

    Args:
        name: Name of the fit.
        shown: Whether this process shows anything.
    """

    def __init__(self, name: str, shown: bool = True) -> None:
        self._name, self._shown = name, shown
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> FitProgress:
        return self

    def __call__(self, done: int, total: int, rmse: float) -> None:
        """Report that `done` of at most `total` iterations are done; a fit may stop before its last."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        if not self._shown:
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console())
            self._task = self._bar.add_task(self._name, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, description=f"{self._name}: held-out RMSE {rmse:.4f}")

    def __exit__(self, *reason: object) -> None:
        if self._bar is not None:
            self._bar.stop()
