"""Teachers: denoisers whose sampling a learned solver speeds up."""

from __future__ import annotations

from typing import Any

__all__ = ["from_pipeline"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import `from_pipeline` when it is first asked for."""
    if name != "from_pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from solverdistill.teachers.diffusers.pipelines.live import from_pipeline

    return from_pipeline
