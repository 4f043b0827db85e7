"""Rows of a benchmark that is done in pieces: JSON lines that a run which was killed goes on from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from solverdistill.support.files import write_atomically

Row = TypeVar("Row", bound=Any)  # a dataclass of plain values


class Kept(Generic[Row]):
    """Rows of one kind, in a file that is whole at any time.

    Args:
        path: The file; its folder is made.
        kind: Dataclass of the rows, of plain values.
    """

    def __init__(self, path: Path, kind: type[Row]) -> None:
        self.path, self.kind = path, kind
        self.rows: list[Row] = []
        if path.is_file():
            self.rows = [kind(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]

    def add(self, row: Row) -> None:
        """Keep one row more."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows.append(row)
        lines = (json.dumps(asdict(one)) for one in self.rows)
        write_atomically(self.path, "".join(f"{line}\n" for line in lines))
