"""Rows of a benchmark that is done in pieces: JSON lines that a run which was killed goes on from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

Row = TypeVar("Row", bound=Any)  # a dataclass of plain values


class Kept(Generic[Row]):
    """Rows of one kind in a file that grows by a line at a time; several processes may add to it.

    Args:
        path: The file; its folder is made. A line that a killed process began is cut off.
        kind: Dataclass of the rows, of plain values.
    """

    def __init__(self, path: Path, kind: type[Row]) -> None:
        self.path, self.rows = path, list[Row]()
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            self.rows = [kind(**json.loads(line)) for line in whole.splitlines()]

    def add(self, row: Row) -> None:
        """Keep one row more."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(f"{json.dumps(asdict(row))}\n")
