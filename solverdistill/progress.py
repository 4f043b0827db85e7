"""What a run shows while it works: rich bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ProgressBar
    from rich.console import Console


def console() -> Console:
    """The terminal that a run prints to."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def progress_bar() -> ProgressBar:
    """Lightning's rich bar in a terminal, its plain one elsewhere, refreshed rarely."""
    from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

    return RichProgressBar() if sys.stdout.isatty() else TQDMProgressBar(refresh_rate=50)


class TargetProgress:
    """Shows how many reference trajectories of a split are done."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._split = ""

    def __call__(self, split: str, done: int, total: int) -> None:
        """Report `done` of `total` trajectories."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if split != self._split:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console())
            self._task = self._bar.add_task(f"reference trajectories ({split})", total=total)
            self._split = split
            self._bar.start()
        self._bar.update(self._task, completed=done)
        if done >= total:
            self._bar.stop()
            self._split = ""
