"""The lines of the family benchmark and the CSV file that keeps them, so that a run can go on where it stopped."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from solverdistill.support.files import write_atomically

CLASSICAL = "classical"
TEXTS = ("settings", "kind", "solver", "fits")
COUNTS = ("nfe", "depth", "params", "teacher_evaluations", "forward_evaluations", "backward_evaluations")


@dataclass(frozen=True)
class Record:
    """One solver at one cost.

    Args:
        settings: Everything that decides the numbers beside solver and nfe.
        kind: "student" or "classical".
        solver: Name of the family, or label of the classical solver.
        nfe: Evaluations per sample.
        depth: Sequential network calls per sample.
        rmse_mean: Mean over the test samples of the RMSE against the reference, of a student after training.
        rmse_median: Its median.
        rmse_p95: Its 95th percentile.
        frechet: Frechet distance to real images; None where the teacher has no extractor or there are few samples.
        initial_mean: What a student begins with, like the four numbers above.
        initial_median: Likewise.
        initial_p95: Likewise.
        initial_frechet: Likewise.
        params: Trained numbers.
        teacher_evaluations: Images evaluated for the reference trajectories of training and validation.
        forward_evaluations: Images that the fits evaluated forward, on training and on validation samples.
        backward_evaluations: What their backward passes and directional derivatives cost, in forward evaluations.
        seconds: Wall time of the fits.
        megabytes: Largest resident memory of the process up to the end of the fits, on a GPU the largest memory of
            tensors, in 10^6 bytes.
        fits: Names of the fits that ran.
        history: (fit, held-out RMSE, evaluations, seconds) of every state that a fit kept; not part of the CSV file.
    """

    settings: str
    kind: str
    solver: str
    nfe: int
    depth: int
    rmse_mean: float
    rmse_median: float
    rmse_p95: float
    frechet: float | None = None
    initial_mean: float | None = None
    initial_median: float | None = None
    initial_p95: float | None = None
    initial_frechet: float | None = None
    params: int = 0
    teacher_evaluations: int = 0
    forward_evaluations: int = 0
    backward_evaluations: int = 0
    seconds: float | None = None
    megabytes: float | None = None
    fits: str = ""
    history: list[list[Any]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int]:
        """What has to be done once: a student at a cost, or all classical solvers at a cost."""
        return (CLASSICAL if self.kind == CLASSICAL else self.solver, self.nfe)

    @property
    def worse(self) -> bool:
        """Whether a student ends worse than it begins, on test samples."""
        return self.initial_mean is not None and not self.rmse_mean <= self.initial_mean


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write all records with all their digits; a number that does not exist is an empty field."""
    stream = io.StringIO()
    names = [field.name for field in fields(Record) if field.name != "history"]
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        values = asdict(record)
        writer.writerow({name: "" if values[name] is None else values[name] for name in names})
    write_atomically(path, stream.getvalue())


def read_records(path: Path, settings: str) -> list[Record]:
    """Read what `write_records` wrote; nothing where there is no file.

    Raises:
        ValueError: the records were made with other settings.
    """
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    for name in lines[0] if lines else ():
        if name not in {field.name for field in fields(Record)}:
            raise ValueError(f"{path.name} has a column {name!r} of another version; start with --fresh to forget it")
    records = [Record(**{name: _parse(name, text) for name, text in line.items()}) for line in lines]
    for record in records:
        if record.settings != settings:
            raise ValueError(
                f"{path.name} was made with other settings ({record.settings}); start with --fresh to forget it, or "
                "give another --out"
            )
    return records


def _parse(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    if name in COUNTS:
        return int(text)
    return float(text) if text else None
