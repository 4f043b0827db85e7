"""Long descents from many starts: how low a family can end, if nothing is spared.

A restart is a start and descents of Gauss-Newton from it, each on other samples and with a fresh damping and curvature,
until one of them lowers the held-out error by less than `ENOUGH`, or the first ends far above other restarts. Starts of
`table`: first what the product makes of its sequential families, with every entry of their tables freed; then random
ones, each on a random grid from a random noise level, as a random classical solver whose rows are fitted by least
squares, with random numbers on its entries and on the levels that it tells the network. Starts of `epd` and
`epd_ipndm`: first the product's; then Gauss rules and searched points on random grids from random levels, with random
numbers on all params. Every third one is the end of a first restart with larger random numbers on it instead.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from solverdistill.families.base import Params
from solverdistill.families.learned.corrected import SEQUENTIAL
from solverdistill.families.learned.table import Table
from solverdistill.families.registry import rebuild
from solverdistill.families.student import Student
from solverdistill.fits.batches import take
from solverdistill.fits.gauss_newton.fit import GaussNewtonFit, fit_gauss_newton
from solverdistill.fits.least_squares.row_fits import RowSettings, fit_rows
from solverdistill.fits.point_search import PointSearchFit, search_points
from solverdistill.fits.race.entrants import grid_rules
from solverdistill.fits.race.fit import RIDGE
from solverdistill.fits.report import Meter
from solverdistill.noise.grids import Grid, lower_start
from solverdistill.programs.solver_file import read_solver

from .exact import BATCH, Bench
from .ground import Cell, Ground, Start

SEQUENTIAL_WINNERS = ("corrected", "gas", "bns")
LOWEST = 4.0  # of log(alpha / sigma), added to the first noise level at most
SEARCHED = 8  # of them for a point search
PUSHES = (0.0, 0.03, 0.1)  # sizes of the random numbers on a table; on what it tells the network three times that
SHAKE = 0.3  # on the params of an EPD student
SHAKES = (0.1, 0.2, 0.4)  # on the end of a first restart; on what it tells the network and its times the same
EVERY = 3
FIRST = 128  # samples of a step of the first descent, and held-out samples; the others take all
ROUNDS, ENOUGH = 6, 0.003
HOPELESS = 1.2  # end of a first descent, as a multiple of the best of other restarts, after which no other follows
ATTEMPTS = 50


class End(NamedTuple):
    """Where a restart ended: the held-out error, what the descents took, and how many there were."""

    params: Params
    held_out: float
    evaluations: int
    rounds: int


def begin(ground: Ground, cell: Cell, number: int) -> Start:
    """The start of a restart; the same for the same number.

    Raises:
        ValueError: none of many random ones can be built.
    """
    free = cell.family == Table.name
    if free and number < len(SEQUENTIAL_WINNERS):
        return freed(ground.distilled({"name": SEQUENTIAL_WINNERS[number]}, cell.wanted, 0))
    if number == 0:
        return ground.distilled({"name": cell.family, **epd_options(cell), "nfe": None, "depth": cell.wanted}, None, 0)
    draw = shaken_end if number % EVERY == EVERY - 1 else random_table if free else random_points
    for attempt in range(ATTEMPTS):
        dice = random.Random(f"{cell} {number} {attempt}")
        try:
            start = draw(ground, cell, dice)
        except ValueError:  # a grid that cannot be built
            continue
        if ground.error(start, SEARCHED) < float("inf"):
            return start
    raise ValueError(f"no start of restart {number} of {cell} can be built")


def freed(start: Start) -> Start:
    """The free table that begins as a fitted solver."""
    family = start.family
    table = Table.of(family.program(start.params).detach(), family.path, float(family.grid[0]))
    return Start(start.label, table, table.init(0), start.evaluations)


def epd_options(cell: Cell) -> dict[str, Any]:
    """Settings of an EPD student of a depth: an odd one has an analytical first step."""
    return {"afs": cell.wanted % 2 == 1}


def random_table(ground: Ground, cell: Cell, dice: random.Random) -> Start:
    """A random classical solver on a random grid, after least squares, with random numbers on its table."""
    base, (label, rule), meter = dice.choice(SEQUENTIAL), random_rule(ground.bench, dice), Meter()
    student = Student.build(Table.name, cell.wanted, rule, ground.bench.teacher.path, base)
    family, params = student.family, student.family.init(0)
    try:
        settings, denoiser = RowSettings(ridge=RIDGE, batch_size=BATCH), ground.bench.denoiser
        with torch.no_grad():
            params, _ = fit_rows(family, denoiser, ground.solved(family), settings, params, meter=meter)
        label += " + least squares"
    except ValueError:  # the reference has no state at one of its levels
        pass
    push = dice.choice(PUSHES)
    params = shaken(params, {"told": 3 * push}, push, dice)
    return Start(f"{base['base']} {base['order']} on {label}, push {push}", family, params, meter.evaluations)


def random_points(ground: Ground, cell: Cell, dice: random.Random) -> Start:
    """A Gauss rule, or searched points, on a random grid, with random numbers on all params."""
    (label, rule), meter = random_rule(ground.bench, dice), Meter()
    options = {**epd_options(cell), "init_from": "quadrature", "learn_times": True}
    options |= {"scale_time": 0.2} if cell.family == "epd_ipndm" else {}
    family = Student.build(cell.family, cell.wanted, rule, ground.bench.teacher.path, options, "depth").family
    params = family.init(0)
    if dice.random() < 0.5:
        search, label = PointSearchFit(SEARCHED, BATCH), f"{label}, points searched"
        with torch.no_grad():
            params = search_points(family, ground.bench.denoiser, ground.solved(family), params, search, meter)
    push = dice.choice((0.0, SHAKE))
    return Start(f"{label}, push {push}", family, shaken(params, {}, push, dice), meter.evaluations)


def shaken_end(ground: Ground, cell: Cell, dice: random.Random) -> Start:
    """The end of one of the first restarts with random numbers on all of its params."""
    number, push = dice.randrange(len(SEQUENTIAL_WINNERS) if cell.family == Table.name else 1), dice.choice(SHAKES)
    file = read_solver(solver_file(ground.bench.folder, cell, number))
    return Start(f"restart {number}, push {push}", rebuild(file.family), shaken(file.params, {}, push, dice), 0)


def solver_file(folder: Path, cell: Cell, number: int) -> Path:
    """Where the solver of a restart is kept."""
    return folder / "floor" / f"{cell.teacher}-{cell.family}-{cell.cost}{cell.wanted}-{number:02}.json"


def random_rule(bench: Bench, dice: random.Random) -> tuple[str, Grid]:
    """A random grid from a random noise level of a teacher."""
    path = bench.teacher.path
    label, rule = dice.choice([*grid_rules(path, *bench.teacher.noise_range).items()])
    shift = dice.choice((0.0, dice.uniform(0.0, LOWEST)))
    return f"{label} lower by {shift:.1f}", lower_start(rule, path, shift) if shift else rule


def shaken(params: Params, sizes: Mapping[str, float], size: float, dice: random.Random) -> Params:
    """Params with random numbers of given sizes on them."""
    generator = torch.Generator().manual_seed(dice.getrandbits(32))
    noise = {name: torch.randn(value.shape, generator=generator).double() for name, value in params.items()}
    return {name: value + sizes.get(name, size) * noise[name] for name, value in params.items()}


def descend(ground: Ground, start: Start, seed: int, most: int | None, best: float = float("inf")) -> End:
    """Gauss-Newton over and over, until it brings nothing more or the evaluations are spent.

    The first descent is quick, on a part of the samples; where it ends far above the best of other restarts the rest is
    not tried, which lowers an error by some per cent.

    Args:
        ground: The samples.
        start: Where to begin.
        seed: Seed of the samples drawn and of the projections.
        most: Evaluations, at most; None for as many as it takes.
        best: Smallest held-out error of other restarts.
    """
    params, error, known, spent, rounds = start.params, float("nan"), None, 0, 0
    few = take(ground.held_out, torch.arange(min(FIRST, ground.samples.held_out)))
    settings = GaussNewtonFit(iterations=60, samples=FIRST, batch_size=BATCH)
    while rounds < ROUNDS and (most is None or spent < most):
        left = None if most is None else most - spent
        settings = replace(settings, evaluations=left, seed=ROUNDS * seed + rounds)
        of = ground.train, few if rounds == 0 else ground.held_out, settings, params
        params, report = fit_gauss_newton(start.family, ground.bench.denoiser, *of, error=known)
        spent, rounds, error = spent + report.evaluations, rounds + 1, report.rmse
        if rounds == 1:
            known = error = ground.error(start._replace(params=params))
            spent += start.family.nfe * ground.samples.held_out
        if error > (HOPELESS * best if rounds == 1 else (1 - ENOUGH) * report.history[0].rmse):
            break
        known, settings = error, replace(settings, samples=None, tolerance=ENOUGH, patience=5)
    return End(params, error, spent, rounds)
