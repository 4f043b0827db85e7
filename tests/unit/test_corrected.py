"""Corrected solvers: what they start as, what their params do, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from solverdistill.families import build
from solverdistill.families.learned.corrected import BASES, Corrected
from solverdistill.families.learned.epd import EPD
from solverdistill.noise.grids import Grid
from solverdistill.programs.playing import sample
from solverdistill.programs.tracing import Trace
from solverdistill.teachers.mixture import toy_mixture
from tests.unit.test_ld3 import GRIDS, everywhere

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
PARALLEL = ("epd", "epd_ipndm")
NAMES = ("alpha", "sigma", "A", "B", "level")


def make(path: str = "edm", **options: Any) -> Corrected:
    grid = GRIDS[path]
    if options.get("base") in PARALLEL and path == "flow":
        grid = Grid("flow_shift", 5, start=1.0, end=0.02, shift=3.0)
    family = build("corrected", grid, path, **options)
    assert isinstance(family, Corrected)
    return family


def start(base: str) -> dict[str, str]:
    """A base whose params the paper draws starts as a solver."""
    return {"init_from": "quadrature"} if base in PARALLEL else {}


@everywhere
@pytest.mark.parametrize("base", BASES)
def test_without_corrections_it_is_its_base_on_the_same_grid(path: str, base: str) -> None:
    family = make(path, base=base)
    solver = build(base, family.grid, path, **start(base))
    ours, theirs = family.program(family.init(3)), solver.program(solver.init(3))
    for name in NAMES:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **CLOSE)
    assert torch.equal(ours.mask, theirs.mask) and ours.stages == theirs.stages
    for value, own in zip(family.prepared_levels(family.init(3)), solver.prepared_levels(solver.init(3)), strict=True):
        torch.testing.assert_close(torch.stack(value), torch.stack(own), **CLOSE)
    values = family.prepare(family.init(3))
    assert family.initial_scale(values) == solver.initial_scale(solver.prepare(solver.init(3)))


@pytest.mark.parametrize(
    ("options", "base"),
    [
        ({"base": "unipc", "order": 3, "variant": "bh1"}, {"order": 3, "variant": "bh1"}),
        ({"base": "dpmpp", "predict_x0": False, "afs": True}, {"predict_x0": False, "afs": True}),
        ({"base": "ipndm", "order": 2}, {"max_order": 2}),
        ({"base": "epd_ipndm", "order": 2, "points": 3}, {"max_order": 2, "points": 3}),
    ],
)
def test_options_of_the_base_reach_it(options: dict[str, Any], base: dict[str, Any]) -> None:
    expected = build(options["base"], GRIDS["edm"], "edm", **base, **start(options["base"]))
    assert make(**options).solver == expected


@pytest.mark.parametrize("base", ["unipc", "ipndm", "epd"])
def test_times_move_the_base_and_keep_the_ends(base: str) -> None:
    family = make(base=base)
    params = family.init(0)
    params["raw_dt"] += 0.3 * torch.randn(5, dtype=torch.float64)
    levels = family.prepared_levels(params)
    s = torch.stack([level.sigma for level in levels])
    assert s[0] == family.grid[0] and s[-1] == family.grid[-1] and bool((s.diff() < 0).all())
    solver = build(base, s, "edm")
    expected = solver.program({name: params[name] for name in solver.init(0)})
    ours = family.program(params)
    for name in NAMES:
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), **CLOSE)
    assert not torch.allclose(ours.B, build(base, family.grid).program(solver.init(0)).B)


def test_corrections_move_structural_entries_of_evaluations_and_sample_by_the_size_of_their_row() -> None:
    family = make(base="unipc", order=3)
    params, start = family.init(0), family.program(family.init(0))
    params["correction_inputs"] += 0.1
    params["correction_denoised"] += 0.2
    moved = family.program(params)
    rows, nfe = family.corrections.rows, family.nfe
    assert rows.tolist() == [0, 1, 2, 3, 4, 9]
    alpha, sigma = start.level[rows].unbind(1)
    torch.testing.assert_close(moved.A[rows] - start.A[rows], 0.1 * sigma[:, None], **CLOSE)
    expected = 0.2 * alpha[:, None] * start.mask[rows, 1:]
    torch.testing.assert_close(moved.B[rows] - start.B[rows], expected, **CLOSE)
    between = slice(nfe, -1)
    assert torch.equal(moved.A[between], start.A[between]) and torch.equal(moved.B[between], start.B[between])


@everywhere
def test_told_moves_the_half_log_snr_that_the_network_hears_and_nothing_else(path: str) -> None:
    family = make(path, base="dpmpp")
    params, start = family.init(0), family.program(family.init(0))
    shift = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.25], dtype=torch.float64)
    params["told"] += shift
    told = family.program(params)
    torch.testing.assert_close(told.alpha / told.sigma, start.alpha / start.sigma * shift.exp(), **CLOSE)
    torch.testing.assert_close(torch.hypot(told.alpha, told.sigma), torch.ones(5, dtype=torch.float64), **CLOSE)
    assert torch.equal(told.A, start.A) and torch.equal(told.B, start.B)
    assert "told" not in make(path, base="dpmpp", learn_told=False).init(0)


def test_parallel_points_stay_parallel() -> None:
    family = make(base="epd", points=3)
    assert isinstance(family.solver, EPD) and (family.nfe, family.depth) == (20, 10)
    params = {name: value + 0.05 * torch.randn_like(value) for name, value in family.init(1).items()}
    noise = torch.randn(2, 6, dtype=torch.float64)
    program = family.program(params)
    *_, end = family.solve(toy_mixture(), noise, params)
    torch.testing.assert_close(end, sample(program, toy_mixture(), noise), **CLOSE)
    assert program.stages == family.solver.program(family.solver.init(0)).stages


def test_the_grid_of_the_base_itself_does_not_move() -> None:
    family = make(base="epd")
    params = family.init(0)
    family.program({**params, "raw_dt": params["raw_dt"] + torch.arange(5)})
    again = family.program(params)
    solver = build("epd", GRIDS["edm"], **start("epd"))
    expected = solver.program(solver.init(0))
    torch.testing.assert_close(again.B, expected.B, **CLOSE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "gas"}, "base of corrected is 'gas'; known: euler, heun"),
        ({"base": "euler", "order": 2}, "base 'euler' of corrected has no order; leave it null"),
        ({"base": "unipc", "points": 2}, "base 'unipc' of corrected has no points; leave it null"),
        ({"base": "unipc", "order": 4}, "order of unipc must be 1 to 3"),
    ],
)
def test_what_the_base_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_it_has_no_steps() -> None:
    family = make()
    trace = Trace()
    with pytest.raises(ValueError, match="no steps of its own"):
        family.step_program(0, family.init(0))
    with pytest.raises(ValueError, match="no steps of its own"):
        next(family.roll_out(trace.inputs[0], trace, family.prepare(family.init(0))))
