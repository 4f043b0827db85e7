"""docs/benchmarks/default.md, from what `floor` and `default` have kept so far.

    python -m scripts.benchmarks.default_report --records FOLDER --out docs/benchmarks/default.md

The records are copied beside the page, and the figure of error against budget is drawn there.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from safetensors.torch import load_file

from solverdistill.support.files import write_atomically

from . import default, floor
from .default import AUTO, CLASSICALS, EPD, Asked, Line
from .default_figure import draw
from .exact import SOLVES
from .floor import Restart
from .ground import Cell
from .kept import Kept
from .machine import describe
from .teachers import GUIDANCE, TEACHERS

NEAR = 0.02  # of the floor: a restart that ends within it found the floor again
HEAD = """# The default run

`solverdistill.distill` with default settings, `solver=auto` where nothing else is named, on four networks. Errors are
mean RMSE of {samples} test samples per teacher, which no fit has seen, against an exact solve from the same noise
(`scripts/benchmarks/exact.py`), in data units; of several seeds the mean, and their *spread*, largest less smallest
over the mean. *evaluations*: all of the network, references and their choice included, in forward equivalents. *floor*:
the best of many long restarts of a free table, see [below](#the-floor). *best classical*: the best of all classical
solvers of that cost from the top of the noise range or from lower levels.
"""
FLOOR = """## The floor

Restarts of `table`, every entry of which is free, from fitted students, then from random solvers on random grids from
random noise levels, with random numbers on their entries and told levels (`scripts/benchmarks/restarts.py`). Each
descends by Gauss-Newton on up to 512 samples until it brings nothing more; on MNIST and emoji32 for 60,000 evaluations
at most. The floor is the test error of the restart with the smallest held-out error, so that it is no smallest of many
test errors. *found again*: other restarts that end within {near:.0%} of it.
"""
EPD_TEXT = """## EPD's own floor

Restarts of the EPD families from what the default makes of them, then from Gauss rules and searched points on random
grids from random levels. *default*: `distill` with that solver.
"""
BUDGET = """## Error against budget

`distill(..., budget=...)` beside the published recipes of LD3 and of GS cut to the same budgets
(`scripts/benchmarks/published.py`; references count). *no budget*: the default run of the table above.
"""


def page(lines: Sequence[Line], restarts: Sequence[Restart], exact: Path) -> str:
    """The whole page."""
    floors = floor.floors(list(restarts))
    sizes = sorted({solve.samples for solve in SOLVES.values()})
    parts = [HEAD.format(samples=" or ".join(map(str, sizes))), *teachers(exact)]
    for teacher in TEACHERS:
        rows = [line for line in lines if line.teacher == teacher and line.budget is None and line.method not in EPD]
        if any(line.method not in CLASSICALS for line in rows):
            parts += ["", f"## {teacher}", "", *student_table(rows, floors)]
    if restarts:
        parts += ["", FLOOR.format(near=NEAR), *floor_table(restarts)]
    if any(row.family in EPD for row in restarts):
        parts += ["", EPD_TEXT, *epd_table(lines, restarts)]
    budgets = [line for line in lines if line.budget is not None]
    if budgets:
        parts += ["", BUDGET, "![Error against budget](default.png)", "", *budget_table(lines, budgets)]
    parts += ["", "## What was run", "", *progress(lines, restarts), ""]
    parts += [*commands(), f"- Machine: {describe(torch.device('cpu'))}; some runs shared it with other work", ""]
    return "\n".join(parts)


def teachers(exact: Path) -> Iterator[str]:
    """What is measured against, for every teacher whose exact solve is there."""
    yield "| teacher | guidance | exact solve | off by about |"
    yield "|---|---:|---|---:|"
    for name in TEACHERS:
        solve = SOLVES[name]
        for file in sorted(exact.glob(f"{name}-{solve.grid}-{solve.steps}-*-0000.safetensors")):
            off = float(load_file(file)["off"])
            yield f"| {name} | {GUIDANCE.get(name, 1)} | iPNDM, {solve.steps} steps, {solve.grid} | {off:.1e} |"


def student_table(lines: Sequence[Line], floors: dict[Cell, Restart]) -> Iterator[str]:
    """Default runs and named students of a teacher."""
    yield "| nfe | student | seeds | RMSE | spread | evaluations | seconds | floor | over it | best classical |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|---:|---|"
    for nfe, method in sorted({(line.nfe, line.method) for line in lines if line.method not in CLASSICALS}):
        own = [line for line in lines if (line.nfe, line.method) == (nfe, method)]
        error, lowest = mean(line.rmse for line in own), floors.get(Cell(own[0].teacher, "table", "nfe", nfe))
        cells = [f"{nfe}", name(own), f"{len(own)}", f"{error:.4f}", spread(line.rmse for line in own)]
        cells += [f"{mean(line.evaluations for line in own):,.0f}", f"{mean(line.seconds for line in own):.0f}"]
        cells += ["-", "-"] if lowest is None else [f"{lowest.rmse:.4f}", f"{error / lowest.rmse - 1:+.1%}"]
        best = min((line for line in lines if line.nfe == nfe and line.method in CLASSICALS), key=rmse, default=None)
        yield f"| {' | '.join(cells)} | {'-' if best is None else f'{best.rmse:.4f}, {best.solver}'} |"


def name(lines: Sequence[Line]) -> str:
    """A method, and what `auto` came to."""
    method, found = lines[0].method, list(dict.fromkeys(line.solver for line in lines))
    return f"**auto** ({', '.join(found)})" if method == AUTO else method


def rmse(line: Line | Restart) -> float:
    """The true error."""
    return line.rmse


def spread(errors: Iterable[float]) -> str:
    """How far seeds lie apart."""
    known = list(errors)
    return f"{(max(known) - min(known)) / mean(known):.1%}" if len(known) > 1 else "-"


def floor_table(restarts: Sequence[Restart]) -> Iterator[str]:
    """The floor of free tables, and how their restarts lie above it."""
    yield "| teacher | nfe | restarts | floor | found again | median | largest | begun at |"
    yield "|---|---:|---:|---:|---:|---:|---:|---|"
    for cell, best, errors, again in ends(restarts, ("table",)):
        numbers = f"{len(errors)} | {best.rmse:.4f} | {again} | {median(errors):.4f} | {max(errors):.4f}"
        yield f"| {cell.teacher} | {cell.wanted} | {numbers} | {best.start} |"


def ends(restarts: Sequence[Restart], families: Sequence[str]) -> Iterator[tuple[Cell, Restart, list[float], int]]:
    """Every cost of some families, with its best restart, the errors of all, and how many found that one again."""
    for cell, best in sorted(floor.floors(list(restarts)).items(), key=lambda item: order(item[0])):
        if cell.family in families:
            rows = [row for row in restarts if row.cell == cell]
            again = sum(row.rmse <= (1 + NEAR) * best.rmse for row in rows if row is not best)
            yield cell, best, [row.rmse for row in rows], again


def epd_table(lines: Sequence[Line], restarts: Sequence[Restart]) -> Iterator[str]:
    """EPD students of every depth against their own floor."""
    yield "| teacher | solver | depth | nfe | default | floor | over it | restarts | found again | begun at |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---|"
    for cell, best, errors, again in ends(restarts, EPD):
        key = cell.teacher, cell.family, best.nfe
        own = [line.rmse for line in lines if (line.teacher, line.method, line.nfe) == key]
        over = (
            f"{mean(own):.4f} | {best.rmse:.4f} | {mean(own) / best.rmse - 1:+.1%}"
            if own
            else f"- | {best.rmse:.4f} | -"
        )
        start = f"{len(errors)} | {again} | {best.start}"
        yield f"| {cell.teacher} | {cell.family} | {cell.wanted} | {best.nfe} | {over} | {start} |"


def order(cell: Cell) -> tuple[int, str, int]:
    """Where a cell stands in a table."""
    return TEACHERS.index(cell.teacher), cell.family, cell.wanted


def budget_table(lines: Sequence[Line], budgets: Sequence[Line]) -> Iterator[str]:
    """Errors by budget, a column per method."""
    methods = list(dict.fromkeys(line.method for line in budgets))
    yield f"| teacher | nfe | budget | {' | '.join(methods)} | no budget | best classical |"
    yield f"|---|---:|---:|{'---:|' * (len(methods) + 2)}"
    known = {(line.teacher, line.nfe, line.budget): None for line in budgets}
    for teacher, nfe, budget in sorted(known, key=lambda key: (TEACHERS.index(key[0]), key[1], key[2] or 0)):
        cell = [line for line in lines if (line.teacher, line.nfe) == (teacher, nfe)]
        groups = [[one.rmse for one in cell if one.method == method and one.budget == budget] for method in methods]
        groups.append([one.rmse for one in cell if one.method == methods[0] and one.budget is None])
        groups.append([min((one.rmse for one in cell if one.method in CLASSICALS), default=float("nan"))])
        shown = " | ".join(f"{mean(group):.4f}" if group else "-" for group in groups)
        yield f"| {teacher} | {nfe} | {budget:,} | {shown} |"


def progress(lines: Sequence[Line], restarts: Sequence[Restart]) -> Iterator[str]:
    """How much of what is wanted has been run."""
    yield "| part | teacher | done | wanted |"
    yield "|---|---|---:|---:|"
    done = {line.asked for line in lines}
    begun = {(row.cell, row.number) for row in restarts}
    for part in default.PARTS:
        wanted = list(default.plan(default.parse(["--out", ".", "--parts", part])))
        yield from _counted(f"{part} runs", wanted, done)
    for family in ("table", *EPD):
        asked = [(cell, number) for cell, number, _ in floor.plan() if cell.family == family]
        yield from _counted(f"restarts of {family}", asked, begun)


def _counted(part: str, wanted: Sequence[Any], done: set[Any]) -> Iterator[str]:
    for teacher in TEACHERS:
        own = [one for one in wanted if (one if isinstance(one, Asked) else one[0]).teacher == teacher]
        if own:
            yield f"| {part} | {teacher} | {len(set(own) & set(done))} | {len(own)} |"


def commands() -> Iterator[str]:
    """How to go on."""
    yield "- Commands, each of which goes on where it was; weights as scripts/benchmarks/teachers.py has them:"
    yield ""
    for module, more in (("floor", " --weights ..."), ("default", " --weights ..."), ("default_report", "")):
        place = "--records FOLDER --out docs/benchmarks/default.md" if module == "default_report" else "--out FOLDER"
        yield f"      python -m scripts.benchmarks.{module} {place}{more}"
    yield ""


def main() -> None:
    """Write the page, the figure and the records beside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--records", type=Path, required=True, help="the --out of floor and default")
    parser.add_argument("--out", type=Path, required=True, help="the page")
    arguments = parser.parse_args()
    kept = Kept(arguments.records / "default.jsonl", Line), Kept(arguments.records / "floor.jsonl", Restart)
    lines, restarts = kept[0].rows, kept[1].rows
    write_atomically(arguments.out, page(lines, restarts, arguments.records / "exact"))
    for file in (one.path for one in kept if one.rows):
        shutil.copyfile(file, arguments.out.with_name(file.name))
    if any(line.budget is not None for line in lines):
        lowest = {cell: best.rmse for cell, best in floor.floors(restarts).items() if cell.family == "table"}
        costs = {(cell.teacher, cell.wanted): error for cell, error in lowest.items()}
        draw(arguments.out.with_suffix(".png"), lines, costs)


if __name__ == "__main__":
    main()
