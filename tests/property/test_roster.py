"""What every family of the roster must satisfy, on every path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill.denoisers.wrappers import Counted
from solverdistill.families import CLASSICAL, ROSTER, build
from solverdistill.families.base import Family, Params, Timeline
from solverdistill.noise.grids import Grid
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.tracing import Trace
from solverdistill.teachers.mixture import toy_mixture

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
}
MULTISTEP = ("dpmpp", "unipc", "deis", "ipndm", "ipndm_v")
NO_ZERO = ("epd", "epd_ipndm")  # divide by their learned noise levels
NO_ZERO_ON = (("ld3", "edm"),)  # learns log-SNR there
NO_STEPS = ("corrected",)  # corrects the table of the whole solver
CASES = [(name, options) for name in ROSTER for options in ({}, *VARIANTS.get(name, []))]
CASES += [(name, {"afs": True}) for name in ROSTER if "afs" in ROSTER[name].__dataclass_fields__]
CASES += [(name, {"denoise_to_zero": True}) for name in ROSTER]
IDS = ["-".join([name, *(f"{key}={value}" for key, value in options.items())]) for name, options in CASES]

everywhere = pytest.mark.parametrize("path", GRIDS)
every_family = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
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


@pytest.mark.parametrize("name", ROSTER)
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
    if name in NO_STEPS:
        for play in (lambda: family.step_program(1, params), lambda: family.solve_step(0, z, (), denoiser, params)):
            with pytest.raises(ValueError, match="no steps of its own"):
                play()
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


@everywhere
@pytest.mark.parametrize("steps", [1, 2, 3])
@every_family
def test_rows_are_finite_to_clean_data_and_at_few_steps(
    name: str, options: dict[str, Any], steps: int, path: str
) -> None:
    """Flow goes from pure noise, alpha = 0, to clean data, sigma = 0."""
    grid = torch.linspace(2.0 if path == "edm" else 1.0, 0.0, steps + 1)
    if options.get("base", name) in NO_ZERO or (name, path) in NO_ZERO_ON:
        with pytest.raises(ValueError, match="must end above 0"):
            build(name, grid, path, **options)
        return
    family = build(name, grid, path, **options)
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


@everywhere
def test_families_that_learn_noise_levels_say_so(path: str) -> None:
    learning = {"bespoke_rk1", "bespoke_rk2", "bns", "corrected", "dss", "dyweight", "gas", "ld3", "s4s_alt"}
    found = {name for name in ROSTER if build(name, replace(GRIDS[path], end=0.05), path).learns_levels}
    assert found == learning
