"""Lightning's progress bar of a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ProgressBar


def progress_bar() -> ProgressBar:
    """Lightning's rich bar in a terminal, its plain one elsewhere, refreshed rarely."""
    from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

    return RichProgressBar() if sys.stdout.isatty() else TQDMProgressBar(refresh_rate=50)
