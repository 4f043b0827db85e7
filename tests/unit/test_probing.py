"""Samplers that are there as code become tables: what comes out plays as they do, and what is none is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from solverdistill import Grid, families, load_solver, read_solver, sample
from solverdistill.commands.import_coefficients import main
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.consumers.kdiffusion import sigmas_of
from solverdistill.importers import probe
from solverdistill.noise.paths import EDM

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of diffusers

SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SIGMAS = Grid(steps=5, start=14.6, end=0.03).values(EDM())
PLAYED = {
    "Euler": ("EulerDiscreteScheduler", SD),
    "Euler, v": ("EulerDiscreteScheduler", {**SD, "prediction_type": "v_prediction"}),
    "Heun": ("HeunDiscreteScheduler", SD),
    "PNDM": ("PNDMScheduler", SD),
    "KDPM2": ("KDPM2DiscreteScheduler", SD),
    "DPM++ on rounded Karras levels": ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}),
    "DDIM from zero SNR": (
        "DDIMScheduler",
        {
            **SD,
            "clip_sample": False,
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
    ),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "UniPC on a flow": ("UniPCMultistepScheduler", FLOW),
}


def network(x: Tensor, timestep: Any) -> Tensor:
    return torch.tanh(0.5 * x) + 0.001 * float(timestep) * torch.cos(x)


def run(scheduler: Any, steps: int, noise: Tensor, device: str = "cpu") -> Tensor:
    """A pipeline in five lines."""
    scheduler.set_timesteps(steps, device=device)
    x = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, timestep), timestep), timestep, x)[0]
    return x


def made(name: str, options: dict[str, Any]) -> Any:
    scheduler = getattr(diffusers, name)(**options)
    for method in ("init_noise_sigma", "scale_model_input"):
        if not hasattr(scheduler, method):  # as pipelines do without them
            setattr(scheduler, method, 1.0 if method == "init_noise_sigma" else lambda x, _: x)
    return scheduler


@pytest.mark.parametrize("case", PLAYED)
def test_a_scheduler_s_table_makes_its_pictures_in_a_pipeline(case: str, tmp_path: Path) -> None:
    name, options = PLAYED[case]
    found = probe(getattr(diffusers, name)(**options), 6)
    path = found.save(tmp_path / "solver.json")
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = run(made(name, options), 6, noise)
    played = run(LearnedSolverScheduler.from_solver(path), found.program.nfe, noise)
    torch.testing.assert_close(played, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def heun(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    for a, b in zip(sigmas, sigmas[1:], strict=False):
        ones = x.new_ones(len(x))
        slope = (x - model(x, a * ones)) / a
        x_euler = x + slope * (b - a)
        x = x_euler if b == 0 else x + (slope + (x_euler - model(x_euler, b * ones)) / b) * (b - a) / 2
    return x


@pytest.mark.parametrize(("flow", "path"), [(False, "edm"), (True, "flow")])
def test_a_function_s_table_is_that_of_the_family(flow: bool, path: str) -> None:
    levels = [*(SIGMAS / (1 + SIGMAS) if flow else SIGMAS).tolist(), 0.0]
    found, family = probe(heun, sigmas=levels, flow=flow), families.build("heun", levels, path)
    table = family.program()
    assert found.program.nfe == family.nfe and found.program.depth == family.depth
    for name in ("alpha", "sigma", "A", "B", "level"):
        torch.testing.assert_close(getattr(found.program, name), getattr(table, name), rtol=1e-9, atol=1e-12)
    expected = torch.tensor(levels, dtype=torch.float32)
    torch.testing.assert_close(sigmas_of(found.program, "flow" if flow else "edm"), expected)


def test_it_is_a_start_for_a_table(tmp_path: Path) -> None:
    found = probe(heun, sigmas=SIGMAS)
    file = read_solver(found.save(tmp_path / "solver.json"))
    family, noise = families.rebuild(file.family), torch.randn(2, 4, dtype=torch.float64)
    played = [
        sample(program, lambda x, a, s: torch.tanh(x) * a[:, None], noise)
        for program in (file.program, family.program(file.params))
    ]
    torch.testing.assert_close(*played, rtol=1e-12, atol=1e-12)
    assert file.provenance["imported"]["deviation"] < 1e-12 and file.provenance["teacher"]["path"] == {"name": "edm"}


def euler(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """A sampler with everything that a table cannot have, one at a time."""
    wrong = options.get("wrong")
    for a, b in zip(sigmas, sigmas[1:], strict=False):
        if wrong == "adapts" and float(x.std()) > 1:
            x = x + (model(x, a * 1.01 * x.new_ones(len(x))) - x) * 0.01
        denoised = model(x, a * x.new_ones(len(x)), **options.get("extra_args", {}))
        if wrong == "clips":
            denoised = denoised.clamp(-1, 1)
        elif wrong == "mixes":
            denoised = denoised.roll(1, 2)
        x = denoised + (x - denoised) * (b / a)
        if wrong == "draws":
            x = x + 0.1 * b * torch.randn_like(x)
        elif wrong == "redraws":
            x = denoised + b * torch.randn_like(x)
    return x


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("draws", "it draws noise of its own; switch that off"),
        ("redraws", "it draws noise of its own; switch that off"),
        ("adapts", "its steps adapt to the image"),
        ("clips", "is not linear in them or does not treat all pixels alike"),
        ("mixes", "is not linear in them or does not treat all pixels alike"),
    ],
)
def test_what_is_no_table_is_refused_with_the_reason(wrong: str, message: str) -> None:
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=message):
        probe(euler, sigmas=[*SIGMAS.tolist(), 0.0], options={"wrong": wrong})
    assert torch.equal(state, torch.random.get_rng_state())
    assert probe(euler, sigmas=SIGMAS, options={"wrong": None}).program.nfe == 5


def test_what_comfyui_s_samplers_ask_of_a_model() -> None:
    callback = {"model_options": {"sampler_post_cfg_function": [print]}}
    with pytest.raises(ValueError, match="steps by the unconditional prediction inside of the guidance"):
        probe(euler, sigmas=SIGMAS, options={"extra_args": callback})

    def asks(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, disable: Any = None) -> Tensor:
        places = (model.inner_model.inner_model.model_sampling, model.inner_model.model_sampling)
        assert places == (model.inner_model.model_patcher.get_model_object("model_sampling"),) * 2 == ("mine", "mine")
        assert disable is True and extra_args["model_options"] == {} and extra_args["seed"] == 0
        return euler(model, x, sigmas, extra_args=extra_args)

    assert probe(asks, sigmas=SIGMAS, model_sampling="mine").program.nfe == 5
    with pytest.raises(ValueError, match="asks the model how it is sampled; give model_sampling"):
        probe(asks, sigmas=SIGMAS)

    def fast(model: Any, x: Tensor, sigma_min: float, sigma_max: float, n: int) -> Tensor:
        return euler(model, x, torch.linspace(sigma_max, sigma_min, n + 1, dtype=torch.float64))

    found = probe(fast, sigmas=[10.0, 5.0, 1.0, 0.0])
    assert found.program.nfe == 3 and float(found.program.level[-1, 1]) == pytest.approx(1.0)
    assert found.remarks[1] == f"{fast.__qualname__} ends at a noise level of 1, not 0"


def test_levels_told_wrongly_are_noticed() -> None:
    def wrong(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
        return euler(lambda x, sigma: model(x, sigma * 1.2), x, sigmas)

    remarks = probe(wrong, sigmas=[10.0, 5.0, 1.0, 0.0], flow=False).remarks
    assert any("noise levels that are up to" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("sigmas", "flow", "message"),
    [
        (None, False, "needs sigmas"),
        ([1.0, 2.0], False, "must be at least 2 decreasing numbers"),
        ([2.0, 0.0], True, "times from 1 to 0, and the first is 2"),
    ],
)
def test_levels_that_are_none(sigmas: Any, flow: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(euler, sigmas=sigmas, flow=flow)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DDIMScheduler", SD, r"clip_sample=True in its configuration depends on the image"),
        ("DPMSolverMultistepScheduler", {**SD, "thresholding": True}, "thresholding=True in its configuration"),
        ("EulerAncestralDiscreteScheduler", SD, "it draws noise of its own"),
        ("LCMScheduler", SD, "it draws noise of its own"),
        ("EDMEulerScheduler", {}, "preconditions its network as EDM does"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "times that run from data to noise"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "cannot make these steps: `mu` must be"),
    ],
)
def test_schedulers_that_are_no_table(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(getattr(diffusers, name)(**options), 4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "pipeline", tmp_path / "solver.json"
    (folder / "scheduler").mkdir(parents=True)
    config = {"_class_name": "DDIMScheduler", **SD, "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    main(["--scheduler", "DPMSolverMultistepScheduler", "--steps", "7", "--config", str(folder), "--out", str(out)])
    shown = capsys.readouterr()
    assert "DPMSolverMultistepScheduler for pipeline, as table" in shown.out and "nfe 7, depth 7" in shown.out
    assert "on random images its table differs from DPMSolverMultistepScheduler by" in shown.err
    main(["--config", str(folder), "--steps", "4", "--option", "timestep_spacing=trailing", "--out", str(out)])
    assert load_solver(out).nfe == 4 and "ends at a noise level of 0.0292" in capsys.readouterr().err
    assert read_solver(out).provenance["imported"]["config"]["timestep_spacing"] == "trailing"
    for arguments, message in (
        ([], "import takes a file, or --scheduler and --config"),
        (["--scheduler", "DDIMScheduler"], "a scheduler needs --steps"),
        (["--scheduler", "Timesteps", "--steps", "4"], "diffusers has no scheduler 'Timesteps'"),
        (["--config", str(folder), "--steps", "4", "--option", "wide=1"], "DDIMScheduler has no setting 'wide'"),
        (["--config", str(folder), "--steps", "4", "--option", "wide"], "--option wide has no value"),
        (["--config", str(tmp_path), "--steps", "4"], "has no scheduler/scheduler_config.json"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--out", str(out)])
        assert message in capsys.readouterr().err


def test_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(code, "docs/samplers.md", "exec"), {})
    assert load_solver("solver.json").nfe == 8
