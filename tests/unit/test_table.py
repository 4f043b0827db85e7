"""Free tables: what they begin as, what is free in them, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.families import ROSTER, build, rebuild
from solverdistill.families.base import Family
from solverdistill.families.learned.parallel import Parallel
from solverdistill.families.learned.table import Table
from solverdistill.noise.grids import Grid
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import load_solver, program_to_json, read_solver, save_solver
from solverdistill.teachers.mixture import toy_mixture
from solverdistill.zoo import names
from tests.property.test_roster import GRIDS, random_params

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
NUMBERS = ("alpha", "sigma", "A", "B", "level")


def of(family: Family) -> tuple[Table, SolverProgram]:
    """The table that begins as a family with some params, and the family's program."""
    program = family.program(random_params(family)).detach()
    return Table.of(program, family.path, family.grid[0]), program


@pytest.mark.parametrize("path", GRIDS)
@pytest.mark.parametrize("name", list(ROSTER))
def test_without_corrections_it_is_the_program_that_it_starts_as(name: str, path: str) -> None:
    table, program = of(build(name, GRIDS[path], path))
    ours = table.program(table.init(0))
    for number in NUMBERS:
        torch.testing.assert_close(getattr(ours, number), getattr(program, number), **EXACT)
    assert ours.stages == program.stages and bool((ours.mask >= program.mask).all())


def test_it_begins_as_every_solver_of_the_zoo() -> None:
    path = build("euler", GRIDS["edm"]).path
    for name in names()[::7]:
        program = load_solver(f"zoo:{name}")
        table = Table.of(program, path, 1e4)
        ours = table.program(table.init(0))
        for number in ("A", "B"):
            torch.testing.assert_close(getattr(ours, number)[: program.nfe], getattr(program, number)[: program.nfe])
            torch.testing.assert_close(getattr(ours, number)[-1], getattr(program, number)[-1])


def test_it_comes_back_from_its_file_with_no_other_file_at_hand(tmp_path: Path) -> None:
    table, _ = of(build("epd", GRIDS["flow"], "flow"))
    params = random_params(table)
    save_solver(tmp_path / "s.json", table.program(params), table.hyperparameters(), params)
    file = read_solver(tmp_path / "s.json")
    again = rebuild(file.family)
    assert again == table and hash(again) == hash(table)
    for number in NUMBERS:
        assert torch.equal(getattr(again.program(file.params), number), getattr(table.program(params), number))


def test_every_causal_entry_is_free_and_nothing_else() -> None:
    table, program = of(build("epd", GRIDS["edm"], points=2))
    leaves = {name: value.requires_grad_() for name, value in table.init(0).items()}
    moved = table.program(leaves)
    nfe, stage_of = program.nfe, {k: s for s, stage in enumerate(program.stages) for k in stage}
    for row in [*range(nfe), len(moved.A) - 1]:
        known = [row == len(moved.A) - 1 or stage_of[j] < stage_of[row] for j in range(nfe)]
        for j in range(nfe):
            assert bool(moved.mask[row, 1 + j]) == known[j], (row, j)
            if known[j]:
                (gradient,) = torch.autograd.grad(moved.B[row, j], leaves["correction_denoised"], retain_graph=True)
                assert int((gradient != 0).sum()) == 1
        assert bool(moved.mask[row, 0])


def test_every_free_entry_moves_the_sample_even_to_clean_data() -> None:
    family = build("dpmpp", Grid("polynomial", 4, end=0.0))
    table, _ = of(family)
    params = {name: value.requires_grad_() for name, value in random_params(table).items()}
    noise = torch.randn(3, 6, dtype=torch.float64)
    sample(table.program(params), toy_mixture(), noise).square().sum().backward()
    acting = torch.cat([params["correction_inputs"].grad != 0, params["correction_denoised"].grad != 0], dim=1)  # pyright: ignore
    assert torch.equal(acting, table.corrections.mask)
    told: Tensor | None = params["told"].grad
    assert told is not None and bool((told != 0).all())


def test_readouts_that_are_no_grid_are_left_out() -> None:
    program = build("euler", Grid("polynomial", 3, end=0.0), denoise_to_zero=True).program()
    path = build("euler", GRIDS["edm"]).path
    table = Table.of(program, path, 80.0)
    assert table.grid == (80.0, 0.0) and table.nfe == program.nfe == 4
    torch.testing.assert_close(table.program(table.init(0)).B[-1], program.B[-1])


def test_a_base_on_the_grid_is_what_it_begins_as_without_a_table() -> None:
    for options, base in ({}, build("unipc", GRIDS["edm"])), ({"base": "heun"}, build("heun", GRIDS["edm"])):
        table = build("table", GRIDS["edm"], **options)
        torch.testing.assert_close(table.program(table.init(0)).B, base.program().B, **EXACT)
    assert {"base": "ipndm", "order": 3} in build("table", GRIDS["edm"]).starts()
    assert build("table", GRIDS["edm"], base="heun").starts() == ({},)


def test_what_cannot_be_is_refused() -> None:
    table, program = of(build("euler", GRIDS["edm"]))
    given = program_to_json(program)
    with pytest.raises(ValueError, match="the grid of table must end with the 5 noise levels that its table reads out"):
        build("table", GRIDS["edm"].with_steps(4), table=given)
    with pytest.raises(ValueError, match="table starts as a given table or as a base, not both"):
        build("table", table.grid, table=given, base="euler")
    with pytest.raises(ValueError, match="base of corrected is 'gas'; known"):
        build("table", GRIDS["edm"], base="gas")
    given["evaluations"][0]["B"][0] = 1.0
    with pytest.raises(ValueError, match="evaluation row 0 is not causal|outside the mask"):
        build("table", table.grid, table=given)


@pytest.mark.parametrize("path", GRIDS)
@pytest.mark.parametrize("points", [2, 3])
def test_idle_points_leave_the_sequential_solver_as_it_is(points: int, path: str) -> None:
    family = build("parallel", GRIDS[path], path, points=points, base="ipndm", order=3)
    base, noise = build("ipndm", GRIDS[path], path, max_order=3), torch.randn(3, 6, dtype=torch.float64)
    program = family.program(family.init(0))
    assert (program.nfe, program.depth) == (5 * points, 5) == (family.nfe, family.depth)
    assert program.stages == tuple(tuple(range(k * points, (k + 1) * points)) for k in range(5))
    ours, theirs = (sample(one, toy_mixture(), noise, readouts=True) for one in (program, base.program()))
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_points_begin_between_the_levels_of_their_stages_on_the_state_that_ddim_leads_to() -> None:
    family = build("parallel", GRIDS["edm"], points=3, spread=1.0, base="euler")
    program, base = family.program(family.init(0)), build("euler", GRIDS["edm"]).program()
    snr, own = (torch.log(one.alpha / one.sigma) for one in (program, base))
    torch.testing.assert_close(snr[::3], own, **EXACT)
    torch.testing.assert_close(snr[1:12:3], own[:-1] + own.diff() / 2, **EXACT)
    torch.testing.assert_close(snr[2:12:3], own[1:], **EXACT)
    denoised = torch.tensor([0.4], dtype=torch.float64)  # the same everywhere: every DDIM step is exact
    noise = torch.ones(1, 1, dtype=torch.float64)
    seen = list[Tensor]()
    sample(program, lambda x, alpha, sigma: denoised.expand_as(x), noise, callback=lambda one: seen.append(one.x))
    states = torch.cat(seen)[3:, 0]  # the first stage knows nothing but noise, which it takes for its whole state
    left = 1 - denoised / family.grid[0]
    torch.testing.assert_close(states, (program.alpha * denoised + program.sigma * left)[3:], **EXACT)


def test_points_stand_beside_sequential_solvers_alone() -> None:
    with pytest.raises(ValueError, match="of a sequential solver; the one given has .* evaluations in 10 stages"):
        build("parallel", GRIDS["edm"], base="epd")
    with pytest.raises(ValueError, match="points of parallel must be at least 1, not 0"):
        build("parallel", GRIDS["edm"], points=0)
    assert isinstance(build("parallel", GRIDS["edm"], points=1), Parallel)
