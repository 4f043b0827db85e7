"""The default run, and named students, against an exact solve: error, cost, and what a budget brings.

    python -m scripts.benchmarks.default --out FOLDER --weights mnist=... emnist=... emoji32=...

Runs are `solverdistill.distill` with default settings, one after the other, seed by seed, so that an early end leaves a
whole table. Each is kept in FOLDER/default.jsonl when it is done, and a run that was killed goes on where it was. Four
parts, of which `--parts` takes some: "classical", the best classical solver of every cost; "default", runs without a
budget; "epd", the same of EPD students at depth 2, 3 and 5; "budget", runs with `distill(..., budget=...)` and, at the
same budgets, the published recipes of `published`.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from solverdistill import distill
from solverdistill.evaluation.candidates import classical_candidates
from solverdistill.evaluation.compare import compare
from solverdistill.evaluation.lower_starts import best_from_lower
from solverdistill.families.base import Family, Params
from solverdistill.fits.report import FitReport
from solverdistill.training.compose import options_of
from solverdistill.training.config_files import find_configs

from .exact import Bench
from .kept import Kept
from .published import RECIPES, run_recipe
from .teachers import GUIDANCE, TEACHERS, parse_weights

PARTS = ("classical", "default", "epd", "budget")
CLASSICAL, LOWER = CLASSICALS = ("classical", "classical from lower")
AUTO = "auto"
SOLVERS = (AUTO, "corrected", "bns", "gas")
NAMED_SEEDS = 2
EPD, EPD_NFE = ("epd", "epd_ipndm"), (3, 5, 8)  # depth 2, 3 and 5, the odd ones with an analytical first step
BATCH = 128


class Size(NamedTuple):
    """How much is run of a teacher: costs and seeds of default runs, largest budget and seeds of the others."""

    nfe: tuple[int, ...]
    seeds: int
    budget: int
    budget_seeds: int
    small: bool  # recipes and EPD run as well


SIZES = {
    "digits": Size((4, 5, 6, 8, 10), 5, 100_000, 3, True),
    "emnist": Size((4, 5, 6, 8, 10), 5, 100_000, 3, True),
    "mnist": Size((4, 6, 8), 3, 30_000, 1, False),
    "emoji32": Size((4, 6), 2, 30_000, 1, False),
}
BUDGETS, BUDGET_NFE = (1_000, 3_000, 10_000, 30_000, 100_000), (4, 6, 8)


@dataclass(frozen=True)
class Asked:
    """One run: a teacher, what is run on it, its cost, its seed, and its budget in forward equivalents, if any."""

    teacher: str
    method: str
    nfe: int
    seed: int
    budget: int | None = None


@dataclass(frozen=True)
class Line:
    """One run, and what it came to.

    Args:
        teacher: As in `Asked`, like the next four.
        method: A solver's name, a recipe's name, or one of the two of classical solvers.
        nfe: Evaluations per sample.
        seed: Seed of the run.
        budget: Its budget; None for none.
        solver: The family that came out, or the label of the classical solver.
        rmse: Mean RMSE of the test samples against the exact solve.
        held_out: The error that the run itself reports; None of classical solvers.
        reference_error: What the run says of its reference's error; None where it does not know.
        teacher_evaluations: What references and their choice took.
        forward_evaluations: What the fits took forward.
        backward_evaluations: What they took in derivatives, in forward equivalents.
        seconds: Wall time of references and fits.
    """

    teacher: str
    method: str
    nfe: int
    seed: int
    budget: int | None
    solver: str
    rmse: float
    held_out: float | None = None
    reference_error: float | None = None
    teacher_evaluations: int = 0
    forward_evaluations: int = 0
    backward_evaluations: int = 0
    seconds: float = 0.0

    @property
    def asked(self) -> Asked:
        """What it is a run of."""
        return Asked(self.teacher, self.method, self.nfe, self.seed, self.budget)

    @property
    def evaluations(self) -> int:
        """All evaluations, references included, in forward equivalents."""
        return self.teacher_evaluations + self.forward_evaluations + self.backward_evaluations


def plan(arguments: argparse.Namespace) -> Iterator[Asked]:
    """Every run that is wanted, the first seeds first; a budget's runs after those without one."""
    for part in [part for part in PARTS if part in arguments.parts]:
        for seed in range(max(size.seeds for size in SIZES.values()) if arguments.seeds is None else arguments.seeds):
            for teacher in arguments.teachers:
                yield from JOBS[part](arguments, teacher, seed)


def classical(arguments: argparse.Namespace, teacher: str, seed: int) -> Iterator[Asked]:
    """The best classical solvers of a teacher, which have no seed."""
    if seed == 0:
        for nfe in arguments.nfe or sorted({*SIZES[teacher].nfe, *BUDGET_NFE}):
            yield from (Asked(teacher, method, nfe, 0) for method in CLASSICALS)


def default(arguments: argparse.Namespace, teacher: str, seed: int) -> Iterator[Asked]:
    """Runs of a teacher without a budget, of one seed."""
    for nfe in arguments.nfe or SIZES[teacher].nfe:
        for solver in arguments.solvers:
            most = SIZES[teacher].seeds if solver == AUTO else NAMED_SEEDS
            if seed < (most if arguments.seeds is None else arguments.seeds):
                yield Asked(teacher, solver, nfe, seed)


def budget(arguments: argparse.Namespace, teacher: str, seed: int) -> Iterator[Asked]:
    """Runs of a teacher with a budget, of one seed."""
    size = SIZES[teacher]
    if seed >= (size.budget_seeds if arguments.seeds is None else arguments.seeds):
        return
    for given in [given for given in arguments.budgets if given <= size.budget]:
        for nfe in arguments.nfe or BUDGET_NFE:
            for method in (*arguments.solvers[: arguments.budgeted], *(RECIPES if size.small else ())):
                yield Asked(teacher, method, nfe, seed, given)


def epd(arguments: argparse.Namespace, teacher: str, seed: int) -> Iterator[Asked]:
    """Runs of EPD students where their floor is known, of one seed."""
    if SIZES[teacher].small and seed < (NAMED_SEEDS if arguments.seeds is None else arguments.seeds):
        yield from (Asked(teacher, method, nfe, seed) for method in EPD for nfe in EPD_NFE)


JOBS = {"classical": classical, "default": default, "epd": epd, "budget": budget}


def measure(bench: Bench, asked: Asked) -> list[Line]:
    """Do one run; all classical solvers of a cost are one."""
    if asked.method in CLASSICALS:
        return measure_classical(bench, asked.nfe)
    if asked.method in RECIPES:
        assert asked.budget is not None
        family, params, reports, held_out = run_recipe(bench, asked.method, asked.nfe, asked.seed, asked.budget)
        return [line_of(bench, asked, family, params, reports, held_out, None)]
    limit: dict[str, Any] = {} if asked.budget is None else {"budget": f"{asked.budget}evals"}
    guidance, targets = GUIDANCE.get(bench.name, 1.0), {"cache": None}  # so that references are made, and counted
    solver = {"name": asked.method, **({"afs": asked.nfe % 3 == 2} if asked.method in EPD else {})}
    done = distill(
        bench.teacher,
        solver,
        asked.nfe,
        guidance,
        targets=targets,
        seed=asked.seed,
        device="cpu",
        progress=False,
        **limit,
    )
    return [line_of(bench, asked, done.family, done.params, done.reports, done.rmse, done.data.choice.error)]


def line_of(
    bench: Bench,
    asked: Asked,
    family: Family,
    params: Params,
    reports: Sequence[FitReport],
    held_out: float | None,
    reference_error: float | None,
) -> Line:
    """A run with its true error and its cost."""
    kinds = ("teacher", "forward", "backward")
    spent = [sum(report.spent[kind].evaluations for report in reports) for kind in kinds]
    seconds = round(sum(report.seconds for report in reports), 1)
    errors = bench.error(family.program(params)), held_out, reference_error
    key = asked.teacher, asked.method, asked.nfe, asked.seed, asked.budget
    return Line(*key, family.name, *errors, *spent, seconds)


def measure_classical(bench: Bench, nfe: int) -> list[Line]:
    """The best classical solver of a cost from the top of the noise range, and the best from lower levels."""
    noise, _, end, cond, *_ = bench.test
    ends = bench.teacher.path, bench.teacher.noise_range
    groups = {CLASSICAL: classical_candidates(*ends, nfe).candidates}
    groups[LOWER] = best_from_lower(*ends, bench.denoiser, noise, cond, end, nfe)
    lines = []
    for method, candidates in groups.items():
        rows = compare(candidates, bench.denoiser, noise, cond, end, BATCH)[: len(candidates)]
        best = min(rows, key=lambda row: row.rmse_mean)
        lines.append(Line(bench.name, method, nfe, 0, None, best.label, best.rmse_mean))
    return lines


def possible(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments without what this version of the package does not have, said."""
    known = options_of(find_configs(), "solver")
    for solver in [solver for solver in arguments.solvers if solver not in known]:
        print(f"solver={solver} is unknown to this version: left out")
    arguments.solvers = [solver for solver in arguments.solvers if solver in known]
    if "budget" not in inspect.signature(distill).parameters:
        print("distill has no budget in this version: with budgets the published recipes alone are run")
        arguments.budgeted = 0
    return arguments


def run(arguments: argparse.Namespace, weights: Mapping[str, str]) -> None:
    """Do what is missing."""
    kept, benches = Kept(arguments.out / "default.jsonl", Line), dict[str, Bench]()
    for asked in plan(possible(arguments)):
        if asked in {line.asked for line in kept.rows}:
            continue
        if asked.teacher not in benches:
            benches[asked.teacher] = Bench.of(asked.teacher, weights, arguments.out)
        for line in measure(benches[asked.teacher], asked):
            kept.add(line)
            print(line, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that everything is kept in")
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE", help="of mnist, emnist, emoji32")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=TEACHERS)
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), help="the first one also runs with budgets")
    parser.add_argument("--nfe", nargs="+", type=int, help="instead of each teacher's own")
    parser.add_argument("--seeds", type=int, help="of everything, instead of each teacher's own")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS), help="in forward equivalents")
    parser.set_defaults(budgeted=1)
    return parser.parse_args(arguments)


def main() -> None:
    """Do what the command line asks for."""
    arguments = parse()
    torch.set_num_threads(1)
    run(arguments, parse_weights(arguments.weights))


if __name__ == "__main__":
    main()
