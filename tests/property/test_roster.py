"""What every family of the roster must satisfy, on every path."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from solverdistill.denoisers.wrappers import Counted
from solverdistill.families import CLASSICAL, ROSTER, build
from solverdistill.families.base import Family, History, Params, State, Timeline
from solverdistill.families.classical.adams import IPNDM
from solverdistill.families.learned.learned_times import learned_grid, raw_steps, to_regular
from solverdistill.families.ode import Slope
from solverdistill.families.registry import find_family
from solverdistill.noise.grids import Grid
from solverdistill.noise.levels import Level, float64
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.tracing import Trace
from solverdistill.teachers.mixture import toy_mixture
from tests.helpers import SHIPPED, all_pairs

# The families of the package, and those outside it whose dotted names the environment lists.
NAMES = [*ROSTER, *os.environ.get("SOLVERDISTILL_TEST_FAMILIES", "").split()]
STEPS = 5
GRIDS = {
    "edm": Grid(steps=STEPS),
    "flow": Grid(kind="flow_shift", steps=STEPS, start=1.0, end=0.02, shift=3.0),
    "vp": Grid(kind="time_uniform", steps=STEPS, start=1.0, end=1e-3),
}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dpm2": [{"r": 0.3}],
    "dpmpp": [{"order": 3}, {"predict_x0": False}, {"order": 3, "predict_x0": False, "lower_order_final": False}],
    "unipc": [{"order": 3}, {"predict_x0": False, "variant": "bh1"}, {"order": 3, "predict_x0": False}],
    "deis": [{"mode": "rhoab"}, {"max_order": 2}],
    "ipndm": [{"max_order": 1}],
    "ipndm_v": [{"max_order": 3}],
    "epd": [{"points": 3, "fcn": True}, {"init_from": "quadrature", "learn_times": True}],
    "epd_ipndm": [{"init_from": "quadrature", "learn_times": True}],
    "gas": [{"order": 2}, {"init_from": "paper"}, {"use_theory_coef": False}],
    "ld3": [
        {"base": "heun"},
        {"base": "ipndm", "order": 3, "window": "smooth"},
        {"base": "unipc", "predict_x0": False, "init_from": "paper"},
    ],
    "dyweight": [{"max_history": None, "keep_output": True}, {"max_history": 2, "learn_time_scale": False}],
    "iia_edm": [{"r": 2}],
    "biia_edm": [{"r": 0}],
    "iia_ipndm": [{"max_order": 2}],
    "iia_dpmpp": [{"order": 3}, {"predict_x0": False}],
    "corrected": [
        {"base": "ipndm", "order": 3, "learn_told": False},
        {"base": "heun"},
        {"base": "epd", "afs": True},
    ],
    "table": [{"base": "ipndm", "order": 3}, {"base": "epd"}],
    "parallel": [{"points": 3, "spread": 1.0}, {"base": "heun"}],
}
WHOLE = {"corrected", "table", "parallel"}  # families that correct a table as a whole
MULTISTEP = ("dpmpp", "unipc", "deis", "ipndm", "ipndm_v")
NO_ZERO = {"epd": (*GRIDS,), "epd_ipndm": (*GRIDS,), "ld3": ("edm",)}  # divide by learned levels, or learn log-SNR


def with_afs(name: str) -> bool:
    return "afs" in getattr(find_family(name), "__dataclass_fields__", ())


def switches(name: str) -> dict[str, list[dict[str, Any]]]:
    """Options of a family, as factors of which one value each makes a case."""
    factors = {"variant": [{}, *VARIANTS.get(name, [])], "zero": [{}, {"denoise_to_zero": True}]}
    return {**factors, "afs": [{}, {"afs": True}]} if with_afs(name) else factors


def label(name: str, options: dict[str, Any]) -> str:
    return "-".join([name, *(f"{key}={value}" for key, value in options.items())])


CASES = [(name, options) for name in NAMES for options in ({}, *VARIANTS.get(name, []))]
CASES += [(name, {"afs": True}) for name in NAMES if with_afs(name)]
CASES += [(name, {"denoise_to_zero": True}) for name in NAMES]
# To clean data at few steps: every option with every path and number of steps, and with every other option.
SHORT_CASES = [
    (name, {**row["variant"], **row["zero"], **row.get("afs", {})}, row["steps"], row["path"])
    for name in NAMES
    for row in all_pairs(**switches(name), path=[*GRIDS], steps=[1, 2, 3])
]
SHORT_IDS = [f"{label(name, options)}-{steps}-{path}" for name, options, steps, path in SHORT_CASES]

everywhere = pytest.mark.parametrize("path", GRIDS)
every_family = pytest.mark.parametrize(("name", "options"), CASES, ids=[label(*case) for case in CASES])
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def noise(batch: int = 4) -> Tensor:
    return torch.randn(batch, 6, dtype=torch.float64)


def random_params(family: Family, seed: int = 3) -> Params:
    """Params away from any special value of the initialisation."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in family.init(seed).items()
    }


def assert_finite(program: SolverProgram) -> None:
    for name in ("A", "B", "alpha", "sigma", "level"):
        assert torch.isfinite(getattr(program, name)).all(), name


@everywhere
@every_family
def test_eager_equals_traced(name: str, options: dict[str, Any], path: str) -> None:
    family = build(name, GRIDS[path], path, **options)
    params, z, denoiser = random_params(family), noise(), toy_mixture()
    program = family.program(params)
    assert_finite(program)
    traced = sample(program, denoiser, z, readouts=True)
    assert traced.shape == (STEPS + family.denoise_to_zero, *z.shape)
    torch.testing.assert_close(torch.stack(list(family.solve(denoiser, z, params))), traced, **CLOSE)
    torch.testing.assert_close(sample(program, denoiser, z), traced[-1])


@pytest.mark.parametrize("name", NAMES)
def test_an_eager_solve_keeps_the_dtype_of_the_noise(name: str) -> None:
    family, z = build(name, GRIDS["edm"]), noise()
    single = list(family.solve(toy_mixture(), z.float(), family.init(0)))[-1]
    double = list(family.solve(toy_mixture(), z, family.init(0)))[-1]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0.0, atol=1e-2)


@everywhere
@every_family
def test_declared_nfe_and_depth_equal_the_counted_ones(name: str, options: dict[str, Any], path: str) -> None:
    family = build(name, GRIDS[path], path, **options)
    counted = Counted(toy_mixture())
    sample(family.program(family.init(0)), counted, noise(batch=3))
    assert (counted.calls, counted.images) == (family.depth, 3 * family.nfe)
    counted = Counted(toy_mixture())
    list(family.solve(counted, noise(batch=3), family.init(0)))
    assert counted.calls == family.nfe


@pytest.mark.parametrize("name", NAMES)
def test_every_step_costs_an_evaluation(name: str) -> None:
    """So that no two numbers of steps cost the same, and a student keeps its own on another grid."""
    costs = [build(name, GRIDS["edm"].with_steps(steps)).nfe for steps in range(1, 5)]
    assert sorted(set(costs)) == costs


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("afs", [False, True])
def test_a_multistep_family_spends_one_evaluation_per_step(name: str, afs: bool) -> None:
    family = build(name, GRIDS["edm"], afs=afs)
    assert family.nfe == family.depth == STEPS - afs


@everywhere
@every_family
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(name: str, options: dict[str, Any], path: str) -> None:
    family = build(name, GRIDS[path], path, **options)
    program, z, denoiser = family.program(family.init(0)), noise(), toy_mixture()
    torch.testing.assert_close(sample(program, denoiser, z)[2:3], sample(program, denoiser, z[2:3]), **CLOSE)


@everywhere
@every_family
def test_the_chain_of_step_programs_is_the_program(name: str, options: dict[str, Any], path: str) -> None:
    family = build(name, GRIDS[path], path, **options)
    params, z, denoiser = random_params(family), noise(), toy_mixture()
    whole = sample(family.program(params), denoiser, z, readouts=True)
    inputs = (z * family.initial_scale(family.prepare(params)),)
    try:
        family.step_program(0, params)
    except ValueError as error:  # corrects the table of the whole solver
        assert "no steps of its own" in str(error) and name not in SHIPPED - WHOLE
        with pytest.raises(ValueError, match="no steps of its own"):
            family.solve_step(0, z, (), denoiser, params)
        return
    for i in range(STEPS):
        program = family.step_program(i, params)
        assert_finite(program)
        *history, x = sample(program, denoiser, inputs, readouts=True)
        torch.testing.assert_close(x, whole[i], **CLOSE)
        eager, eager_history = family.solve_step(i, inputs[0], tuple(inputs[1:]), denoiser, params)
        for ours, theirs in zip((x, *history), (eager, *eager_history), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
        inputs = (x, *history)


@everywhere
@every_family
def test_hyperparameters_make_the_same_family_again(name: str, options: dict[str, Any], path: str) -> None:
    family = build(name, GRIDS[path], path, **options)
    again = build(**family.hyperparameters())
    assert again == family
    for attribute in ("A", "B", "alpha", "sigma"):
        assert torch.equal(
            getattr(again.program(again.init(0)), attribute), getattr(family.program(family.init(0)), attribute)
        )


@pytest.mark.parametrize(("name", "options", "steps", "path"), SHORT_CASES, ids=SHORT_IDS)
def test_rows_are_finite_to_clean_data_and_at_few_steps(
    name: str, options: dict[str, Any], steps: int, path: str
) -> None:
    """Flow goes from pure noise, alpha = 0, to clean data, sigma = 0; a family may refuse that in one sentence."""
    grid = torch.linspace(2.0 if path == "edm" else 1.0, 0.0, steps + 1)
    refuses = any(path in NO_ZERO.get(key, ()) for key in (name, options.get("base", "")))
    try:
        family = build(name, grid, path, **options)
    except ValueError as error:
        assert "must end above 0" in str(error) and (refuses or name not in SHIPPED)
        return
    assert not refuses
    assert_finite(family.program(family.init(0)))
    assert sample(family.program(family.init(0)), toy_mixture(), noise()).isfinite().all()


@everywhere
@pytest.mark.parametrize("name", [family.name for family in CLASSICAL])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_steps_are_differentiable_in_the_times(name: str, predict_x0: bool, path: str) -> None:
    """Between fixed ends, which include alpha = 0 and sigma = 0 where the path has them; against finite differences."""
    options = {"predict_x0": predict_x0, "order": 3} if name in ("dpmpp", "unipc") else {}
    ends = {"edm": (2.0, 0.0), "flow": (1.0, 0.0), "vp": (0.9, 0.0)}[path]
    inner = ends[0] * torch.tensor([0.8, 0.55, 0.3, 0.1], dtype=torch.float64)
    family = build(name, torch.tensor([ends[0], *inner.tolist(), ends[1]], dtype=torch.float64), path, **options)
    z, denoiser = noise(batch=1), toy_mixture()

    def end_point(times: Tensor) -> Tensor:
        s = torch.cat([times.new_tensor(ends[:1]), times, times.new_tensor(ends[1:])])
        trace = Trace()
        for x, level in family.roll_out(trace.inputs[0], trace, Timeline(family.path, s)):
            trace.readout(x, level)
        return sample(trace.program(), denoiser, z)

    assert torch.autograd.gradcheck(end_point, inner.requires_grad_(), eps=1e-6, atol=1e-5, rtol=1e-3)


@everywhere
@pytest.mark.parametrize("name", [family.name for family in CLASSICAL])
def test_a_told_level_changes_what_the_network_hears_and_not_the_path(name: str, path: str) -> None:
    """Told its own levels explicitly, a family is itself; told others, its states move."""
    family, z, denoiser = build(name, GRIDS[path], path), noise(), toy_mixture()
    s = family.timeline.s

    def states(told: Tensor | None) -> Tensor:
        trace = Trace()
        for x, level in family.roll_out(trace.inputs[0], trace, Timeline(family.path, s, told)):
            trace.readout(x, level)
        return sample(trace.program(), denoiser, z, readouts=True)

    torch.testing.assert_close(states(s), states(None), **CLOSE)
    assert not torch.allclose(states(s * 0.95), states(None))


@everywhere
@pytest.mark.parametrize(
    ("name", "options"),
    [("ipndm", {"max_order": 1}), ("ipndm_v", {"max_order": 1}), ("deis", {"max_order": 1})]
    + [("dpmpp", {"order": 1}), ("dpmpp", {"order": 1, "predict_x0": False})],
)
def test_order_one_is_ddim(name: str, options: dict[str, Any], path: str) -> None:
    ours, ddim = build(name, GRIDS[path], path, **options).program(), build("ddim", GRIDS[path], path).program()
    torch.testing.assert_close(ours.A, ddim.A, **CLOSE)
    torch.testing.assert_close(ours.B, ddim.B, **CLOSE)


def test_rhoab_is_ipndm_v_and_ipndm_v_is_ipndm_on_uniform_steps() -> None:
    uniform = Grid(kind="polynomial", rho=1.0, steps=7)
    for max_order in (2, 3, 4):
        programs = [
            build("deis", GRIDS["edm"], mode="rhoab", max_order=max_order).program(),
            build("ipndm_v", GRIDS["edm"], max_order=max_order).program(),
            build("ipndm_v", uniform, max_order=max_order).program(),
            build("ipndm", uniform, max_order=max_order).program(),
        ]
        torch.testing.assert_close(programs[0].B, programs[1].B, **CLOSE)
        torch.testing.assert_close(programs[2].B, programs[3].B, **CLOSE)


def test_epd_with_one_point_in_the_middle_is_dpm2() -> None:
    epd = build("epd", GRIDS["edm"], points=1, scale_dir=0.0, scale_time=0.0)
    params = {name: torch.zeros_like(value) for name, value in epd.init(0).items()}
    dpm2 = build("dpm2", GRIDS["edm"], r=0.5)
    torch.testing.assert_close(epd.program(params).B, dpm2.program().B, **CLOSE)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpmpp", {"order": 4}, "order of dpmpp must be 1 to 3"),
        ("unipc", {"order": 0}, "order of unipc must be 1 to 3"),
        ("unipc", {"variant": "bh3"}, "known: bh1, bh2"),
        ("deis", {"mode": "rho"}, "known: tab, rhoab"),
        ("deis", {"vp_sigma_min": 100.0}, "VP process"),
        ("ipndm", {"max_order": 5}, "max_order of ipndm must be 1 to 4"),
        ("ipndm_v", {"order": 3}, "has no hyperparameter 'order'"),
    ],
)
def test_a_wrong_hyperparameter_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, GRIDS["edm"], **options)


def ratios(levels: list[Level]) -> Tensor:
    alpha, sigma = (torch.stack(values) for values in zip(*levels, strict=True))
    return sigma.log() - alpha.log()


def check_levels(family: Family) -> None:
    """The declared levels are those of the states, and they move with the params if and only if the family says so.

    A state between two steps is one that the network is asked about, so its signal-to-noise ratio is among those that
    the steps themselves state; a family that moves its times and declares those of the fixed grid fails here.
    """
    params = random_params(family)
    program, declared = family.program(params), family.prepared_levels(params)
    torch.testing.assert_close(
        torch.stack([torch.stack(level) for level in declared[1:]]), program.level[program.nfe :]
    )
    asked = ratios([Level(*level) for level in program.level[: program.nfe]])
    for i, ratio in enumerate(ratios(declared[1 : family.steps]) if family.steps > 1 else (), start=1):
        assert bool(((asked - ratio).abs() < 1e-9).any()), f"nothing is asked at the declared level of state {i}"
    moved = ratios(declared[: family.steps]) - ratios(family.prepared_levels(family.init(0))[: family.steps])
    assert bool((moved.abs() > 1e-9).any()) is family.learns_levels


@everywhere
@every_family
def test_declared_levels_are_those_of_the_states(name: str, options: dict[str, Any], path: str) -> None:
    check_levels(build(name, replace(GRIDS[path], start=0.9 * GRIDS[path].start), path, **options))


class Hidden(NamedTuple):
    """Learned times where nobody looks for them."""

    times: Timeline


@dataclass(frozen=True, kw_only=True)
class Moved(IPNDM):
    """Learned times, in the `Timeline` that `prepare` returns."""

    name: ClassVar[str] = "moved"

    def init(self, seed: int = 0) -> Params:
        return {"raw_dt": raw_steps(to_regular(self.path, float64(self.grid)))}

    def prepare(self, params: Params) -> Any:
        return Timeline(self.path, learned_grid(self.path, self.grid, params["raw_dt"]))


@dataclass(frozen=True, kw_only=True)
class Forgetful(Moved):
    """The same, hidden, and without `levels` of its own."""

    name: ClassVar[str] = "forgetful"

    def prepare(self, params: Params) -> Hidden:
        return Hidden(super().prepare(params))

    def update(self, i: int, y: State, history: History, slope: Slope, values: Hidden) -> tuple[State, History]:
        return super().update(i, y, history, slope, values.times)


@everywhere
def test_levels_come_from_the_timeline_and_forgotten_ones_are_found(path: str) -> None:
    grid = GRIDS[path].with_steps(4)
    own = [
        build(f"{__name__}.{cls.__name__}", replace(grid, start=0.9 * grid.start), path) for cls in (Moved, Forgetful)
    ]
    assert [family.learns_levels for family in own] == [True, False]
    check_levels(own[0])
    with pytest.raises(AssertionError, match="nothing is asked at the declared level of state 1"):
        check_levels(own[1])
