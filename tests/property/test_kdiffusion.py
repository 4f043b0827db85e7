"""Every family, played by the conventions of k-diffusion, equals `sample`; against k-diffusion's own loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill import read_solver, sample, save_solver
from solverdistill.consumers.kdiffusion import convention_of, sample_learned, sigmas_of
from solverdistill.families import build
from solverdistill.noise.grids import Grid
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import SolverFile
from solverdistill.teachers.mixture import Mixture, toy_mixture
from tests.property.test_roster import every_family, random_params

STEPS = 4
GRIDS = {
    "edm": Grid(steps=STEPS),
    "flow": Grid(kind="flow_shift", steps=STEPS, start=1.0, end=0.02, shift=3.0),
    "vp": Grid(kind="time_uniform", steps=STEPS, start=1.0, end=1e-3),
}
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


class Model:
    """A denoiser of k-diffusion over this package's exact one; sigma as EDM's or as flow time."""

    def __init__(self, flow: bool = False, teacher: Mixture | None = None) -> None:
        self.flow, self.teacher, self.calls = flow, teacher or toy_mixture(), []

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        assert sigma.shape == (len(x),)
        self.calls.append({"batch": len(x), "sigma": sigma, "dtype": x.dtype, **extra_args})
        alpha = 1 - sigma if self.flow else torch.ones_like(sigma)
        cond = extra_args.get("class_cond")
        return self.teacher(x, alpha, sigma) if cond is None else self.teacher(x, alpha, sigma, cond)


def solver_file(name: str, options: dict[str, Any], path: str, folder: Path) -> SolverFile:
    family = build(name, GRIDS[path], path, **options)
    params = random_params(family)
    file = folder / "solver.json"
    save_solver(file, family.program(params), family.hyperparameters(), params)
    return read_solver(file)


def draw(batch: int = 3) -> Tensor:
    return torch.randn(batch, 6, dtype=torch.float64)


def first_scale(file: SolverFile) -> tuple[float, float]:
    """Factors of unit noise in the first state, in the library's scale, and of the sample in the last one."""
    family, flow = build(**file.family), convention_of(file) == "flow"
    first, last = family.prepared_levels(file.params)[0], file.program.level[-1]
    factors = [float(level[0] + level[1]) if flow else float(level[0]) for level in (first, last)]
    return float(family.start_scale(file.params)) / factors[0], factors[1]


@pytest.mark.parametrize("path", GRIDS)
@every_family
def test_a_sampler_function_equals_sample(name: str, options: dict[str, Any], path: str, tmp_path: Path) -> None:
    file, noise = solver_file(name, options, path, tmp_path), draw()
    flow = convention_of(file) == "flow"
    assert flow is (path == "flow")
    start, end = first_scale(file)
    expected = sample(file.program, toy_mixture(), noise) / end
    sigmas, seen = sigmas_of(file), []
    for parallel, calls in ((True, file.program.depth), (False, file.program.nfe)):
        model, seen = Model(flow), []
        found = sample_learned(
            model, noise * start, sigmas, callback=seen.append, disable=True, solver=file, parallel=parallel
        )
        torch.testing.assert_close(found, expected, **CLOSE)
        assert len(model.calls) == calls and sum(call["batch"] for call in model.calls) == 3 * file.program.nfe
    assert [step["i"] for step in seen] == list(range(len(sigmas) - 1))
    assert bool((sigmas[:-1] > sigmas[1:]).all()) and sigmas.dtype == torch.float32
    states = sample(file.program, toy_mixture(), noise, readouts=True)
    levels = file.program.level[file.program.nfe :]
    scales = levels.sum(1) if flow else levels[:, 0]
    for i, step in enumerate(seen):
        before = noise * start if i == 0 else states[i - 1] / scales[i - 1]
        torch.testing.assert_close(step["x"], before, **CLOSE)
        assert float(step["sigma"]) == float(step["sigma_hat"]) == pytest.approx(float(sigmas[i]), rel=1e-6)
        assert step["denoised"].shape == noise.shape


def test_a_vp_solver_runs_on_any_convention(tmp_path: Path) -> None:
    """The sigmas say in which scale the states are."""
    file, noise = solver_file("unipc", {}, "vp", tmp_path), draw()
    expected = sample(file.program, toy_mixture(), noise)
    level = file.program.level[-1]
    first = build(**file.family).prepared_levels()[0]
    for flow, name in ((False, "edm"), (True, "flow")):
        scale, end = (float(v[0] + v[1]) if flow else float(v[0]) for v in (first, level))
        start = noise * (float(build(**file.family).start_scale()) / scale)
        found = sample_learned(Model(flow), start, sigmas_of(file, name), disable=True, solver=file)
        torch.testing.assert_close(found * end, expected, **CLOSE)


# --- k-diffusion's own loops, written from its conventions ---------------------------------------------------------


def loop_euler(model: Any, x: Tensor, sigmas: Tensor, callback: Callable[[dict[str, Any]], None]) -> Tensor:
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]))
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def loop_heun(model: Any, x: Tensor, sigmas: Tensor, callback: Callable[[dict[str, Any]], None]) -> Tensor:
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]))
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        slope, step = (x - denoised) / sigmas[i], sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            x = x + slope * step
        else:
            other = x + slope * step
            second = (other - model(other, sigmas[i + 1] * x.new_ones([len(x)]))) / sigmas[i + 1]
            x = x + (slope + second) / 2 * step
    return x


def loop_dpmpp_2m(model: Any, x: Tensor, sigmas: Tensor, callback: Callable[[dict[str, Any]], None]) -> Tensor:
    times, old = -sigmas.log(), None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]))
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        h = times[i + 1] - times[i]
        mixed = denoised
        if old is not None and sigmas[i + 1] > 0:
            r = (times[i] - times[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x = (sigmas[i + 1] / sigmas[i]) * x - torch.expm1(-h) * mixed
        old = denoised
    return x


@pytest.mark.parametrize(
    ("name", "options", "loop"),
    [("euler", {}, loop_euler), ("heun", {}, loop_heun), ("dpmpp", {"order": 2}, loop_dpmpp_2m)],
)
def test_classical_solvers_are_k_diffusions_own_loops(name: str, options: dict[str, Any], loop: Any) -> None:
    grid = [14.6, 6.0, 2.5, 0.7, 0.1, 0.0]
    program = build(name, grid, **options).program()
    x, ours, theirs = draw() * 14.6, [], []
    sigmas = sigmas_of(program)
    torch.testing.assert_close(sigmas, torch.tensor(grid))
    a, b = Model(), Model()
    found = sample_learned(a, x, sigmas, None, ours.append, True, solver=program)
    expected = loop(b, x, torch.tensor(grid, dtype=torch.float64), theirs.append)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert len(ours) == len(theirs) and len(a.calls) == len(b.calls)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and mine["i"] == other["i"]
        torch.testing.assert_close(mine["x"], other["x"], **CLOSE)
        assert float(mine["sigma"]) == pytest.approx(float(other["sigma"]))
    torch.testing.assert_close(ours[0]["denoised"], theirs[0]["denoised"], **CLOSE)


# --- arguments -------------------------------------------------------------------------------------------------------


def epd() -> SolverProgram:
    family = build("epd", Grid(steps=2), points=3)
    return family.program(random_params(family))


def test_arguments_travel_to_every_call_and_grow_with_the_batch() -> None:
    teacher = Mixture(draw(4), [1.0] * 4, [0.3] * 4, labels=[0, 0, 1, 1])
    program, noise, labels = epd(), draw(4), torch.tensor([0, 1, 1, 0])
    options = {"transformer_options": {"sigmas": torch.ones(4)}}
    extra = {"class_cond": labels, "model_options": options, "seed": 3, "denoise_mask": None}
    model = Model(teacher=teacher)
    start = float(program.A[0, 0] / program.level[0, 0])
    found = sample_learned(model, noise * start, sigmas_of(program), extra, disable=True, solver=program)
    torch.testing.assert_close(found, sample(program, teacher, noise, labels), **CLOSE)
    assert [call["batch"] for call in model.calls] == [4, 12, 4, 12]
    assert all(call["model_options"] is options and call["seed"] == 3 for call in model.calls)
    assert all(len(call["class_cond"]) == call["batch"] for call in model.calls)
    masked = Model(teacher=teacher)
    with pytest.raises(ValueError, match="the model has no latent_image to keep"):
        sample_learned(masked, noise, sigmas_of(program), {"denoise_mask": torch.ones(4, 6)}, solver=program)
    masked.latent_image = torch.zeros(4, 6)  # type: ignore[attr-defined]
    again = sample_learned(
        masked,
        noise * start,
        sigmas_of(program),
        {**extra, "denoise_mask": torch.ones(4, 6)},
        disable=True,
        solver=program,
    )
    assert [call["batch"] for call in masked.calls] == [4] * program.nfe
    torch.testing.assert_close(again, found, **CLOSE)


def test_half_precision_stays_outside_of_the_coefficients() -> None:
    program, noise = epd(), draw()
    start = float(program.A[0, 0] / program.level[0, 0])
    model = Model()
    x = (noise * start).bfloat16()
    found = sample_learned(model, x, sigmas_of(program), disable=True, solver=program)
    assert found.dtype == torch.bfloat16 and {call["dtype"] for call in model.calls} == {torch.bfloat16}
    assert {call["sigma"].dtype for call in model.calls} == {torch.float32}
    torch.testing.assert_close(found.double(), sample(program, toy_mixture(), x.double() / start), rtol=0.02, atol=0.1)


def test_a_table_with_an_analytical_first_step_begins_where_the_network_does() -> None:
    family = build("ipndm", Grid(steps=4), afs=True)
    program, noise = family.program(), draw()
    sigmas = sigmas_of(program)
    assert len(sigmas) == 4 and float(sigmas[0]) == pytest.approx(family.grid[1])
    start, seen = float(program.A[0, 0] / program.level[0, 0]), []
    found = sample_learned(Model(), noise * start, sigmas, None, seen.append, True, solver=program)
    torch.testing.assert_close(found, sample(program, toy_mixture(), noise), **CLOSE)
    assert [step["i"] for step in seen] == [0, 1, 2]


def test_foreign_sigmas_are_refused_in_one_sentence(tmp_path: Path) -> None:
    file = solver_file("ipndm", {}, "edm", tmp_path)
    own = sigmas_of(file)
    for sigmas in (own[:-1], own * 1.001, torch.linspace(14.6, 0, 21), own.flip(0), own[:0]):
        with pytest.raises(ValueError, match=r"not the solver's: it was fitted to 4 steps from 80 to 0.002") as caught:
            sample_learned(Model(), draw(), sigmas, disable=True, solver=file)
        assert "\n" not in str(caught.value) and "take them from sigmas_of" in str(caught.value)
    pure = solver_file("euler", {}, "flow", tmp_path)
    with pytest.raises(ValueError, match="pure noise, which has no sigma"):
        sigmas_of(pure, "edm")
    with pytest.raises(ValueError, match="known: edm, flow"):
        sigmas_of(pure, "vp")
    with pytest.raises(ValueError, match="not the solver's"):
        sample_learned(Model(), draw(), own, disable=True, solver=pure)


@every_family
def test_an_image_goes_on_at_a_step_that_evaluates(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    file = solver_file(name, options, "flow", tmp_path)
    whole, sigmas, seen, model = sigmas_of(file), sigmas_of(file, denoise=0.5), [], Model(flow=True)
    assert 2 <= len(sigmas) <= len(whole) and torch.equal(sigmas[1:], whole[-len(sigmas) + 1 :])
    x = (1 - float(sigmas[0])) * draw() + float(sigmas[0]) * draw()
    found = sample_learned(model, x, sigmas, None, seen.append, True, solver=file)
    assert float(model.calls[0]["sigma"][0]) == pytest.approx(float(sigmas[0]))
    assert [step["i"] for step in seen] == list(range(len(sigmas) - 1)) and bool(found.isfinite().all())
    with pytest.raises(ValueError, match="denoise must be above 0"):
        sigmas_of(file, denoise=0.0)


def test_a_file_of_a_flow_teacher_is_played_as_flow(tmp_path: Path) -> None:
    family = build("euler", GRIDS["vp"], "vp")
    save_solver(tmp_path / "a.json", family.program(), provenance={"teacher": {"prediction": "flow", "path": None}})
    save_solver(tmp_path / "b.json", family.program(), provenance={"teacher": "unknown"})
    assert convention_of(read_solver(tmp_path / "a.json")) == "flow"
    assert convention_of(read_solver(tmp_path / "b.json")) == "edm"
