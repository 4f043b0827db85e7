"""The floor: the smallest error that many long descents of a family found, per teacher and cost.

    python -m scripts.benchmarks.floor --out FOLDER --weights mnist=... emnist=... emoji32=...

Restarts are described in `restarts`. They are done breadth first, the first ones of all costs before the second ones,
and each is kept in FOLDER/floor.jsonl when it is done, with its solver beside it, so that a run that was killed goes on
where it was. Errors are those of test samples against an exact solve (`exact`); which restart is the best is asked on
the held-out samples, so that the floor is no smallest of many test errors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from solverdistill.programs.solver_file import save_solver

from .exact import Bench
from .ground import SAMPLES, Cell, Ground
from .kept import Kept
from .restarts import begin, descend, solver_file
from .teachers import TEACHERS, parse_weights


@dataclass(frozen=True)
class Goal:
    """Restarts that are wanted of some costs.

    Args:
        teacher: Name of the teacher.
        family: "table", "epd" or "epd_ipndm".
        cost: "nfe" or "depth".
        wanted: The costs.
        restarts: How many restarts.
        most: Evaluations of a restart's descents, at most; None for as many as it takes.
        later: By how many rounds of the others these come later.
    """

    teacher: str
    family: str
    cost: str
    wanted: tuple[int, ...]
    restarts: int
    most: int | None = None
    later: int = 0


SMALL = ("digits", "emnist")
GOALS = (
    *(Goal(name, "table", "nfe", (4, 6), 30) for name in SMALL),
    *(Goal(name, "table", "nfe", (5, 8), 30, later=2) for name in SMALL),
    *(Goal(name, family, "depth", (2, 3, 5), 12, later=3) for family in ("epd", "epd_ipndm") for name in SMALL),
    Goal("mnist", "table", "nfe", (4, 6), 8, 60_000, later=6),
    Goal("emoji32", "table", "nfe", (4, 6), 8, 60_000, later=12),
)


@dataclass(frozen=True)
class Restart:
    """One restart, and where it ended.

    Args:
        teacher: Name of the teacher.
        family: The family.
        cost: "nfe" or "depth".
        wanted: How much of it.
        number: Which restart.
        nfe: Evaluations per sample.
        start: Where it began.
        rmse: Mean RMSE of the test samples against the exact solve.
        held_out: That of the held-out samples against their reference.
        evaluations: What start and descents took, in forward equivalents.
        seconds: Wall time.
    """

    teacher: str
    family: str
    cost: str
    wanted: int
    number: int
    nfe: int
    start: str
    rmse: float
    held_out: float
    evaluations: int
    seconds: float

    @property
    def cell(self) -> Cell:
        """What it is a restart of."""
        return Cell(self.teacher, self.family, self.cost, self.wanted)


def plan(goals: tuple[Goal, ...] = GOALS) -> Iterator[tuple[Cell, int, int | None]]:
    """Every restart that is wanted, breadth first: its cell, its number, and how much it may take."""
    for turn in range(max(goal.restarts + goal.later for goal in goals)):
        for goal in goals:
            number = turn - goal.later
            if 0 <= number < goal.restarts:
                yield from ((Cell(goal.teacher, goal.family, goal.cost, w), number, goal.most) for w in goal.wanted)


def floors(rows: list[Restart]) -> dict[Cell, Restart]:
    """The restart of every cell with the smallest held-out error."""
    best: dict[Cell, Restart] = {}
    for row in sorted(rows, key=lambda row: row.held_out):
        best.setdefault(row.cell, row)
    return best


def measure(ground: Ground, cell: Cell, number: int, most: int | None, best: float = float("inf")) -> Restart:
    """Do one restart, and write its solver; the best of the others has a held-out error of `best`."""
    began = time.perf_counter()
    start = begin(ground, cell, number)
    end = descend(ground, start, number, most, best)
    program = start.family.program(end.params).detach()
    error, spent = ground.bench.error(program), start.evaluations + end.evaluations
    numbers = error, end.held_out, spent, round(time.perf_counter() - began, 1)
    file = solver_file(ground.bench.folder, cell, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_solver(file, program, start.family.hyperparameters(), end.params, {"metrics": {"rmse": error}})
    return Restart(cell.teacher, cell.family, cell.cost, cell.wanted, number, program.nfe, start.label, *numbers)


def run(out: Path, weights: Mapping[str, str], teachers: Sequence[str], families: Sequence[str], most: int) -> None:
    """Do what is missing, of the first `most` restarts; other processes may be at it, too."""
    grounds: dict[str, Ground] = {}
    for cell, number, allowed in plan():
        kept = Kept(out / "floor.jsonl", Restart)
        others = {row.number: row.held_out for row in kept.rows if row.cell == cell}
        if number in others or number >= most or cell.teacher not in teachers or cell.family not in families:
            continue
        if cell.teacher not in grounds:
            grounds[cell.teacher] = Ground(Bench.of(cell.teacher, weights, out), SAMPLES[cell.teacher])
        best = min(others.values(), default=float("inf"))
        kept.add(measure(grounds[cell.teacher], cell, number, allowed, best))
        print(kept.rows[-1], flush=True)


def main() -> None:
    """Read the command line and go on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that everything is kept in")
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE", help="of mnist, emnist, emoji32")
    parser.add_argument("--teachers", nargs="+", default=TEACHERS, choices=TEACHERS)
    parser.add_argument("--families", nargs="+", default=["table", "epd", "epd_ipndm"])
    parser.add_argument("--restarts", type=int, default=30, help="the first ones of every cost alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    run(given.out, parse_weights(given.weights), given.teachers, given.families, given.restarts)


if __name__ == "__main__":
    main()
