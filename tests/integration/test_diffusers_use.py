"""What else people do with a pipeline: other steps, strength, masks, guidance, saving, another scheduler."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill import Grid, families, sample
from solverdistill.commands.export import main
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.consumers.diffusers_folder import STANDALONE, write_scheduler
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import save_solver
from tests.diffusers_networks import CONFIGS, assert_close_to_scale, scale_error
from tests.tiny_diffusion_pipelines import make_ddpm, make_sd
from tests.tiny_flow_pipelines import make_flux, make_sd3
from tests.tiny_pipelines import BATCH, GUIDANCE, SIZE, Case, embeddings

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def quiet() -> None:
    """diffusers logs what it thinks of pipelines without tokenizers."""
    from diffusers.utils import logging

    logging.set_verbosity_error()


def make_program(path: str = "vp", steps: int = 6) -> SolverProgram:
    start = 1.0 if path == "flow" else 0.98
    kind = "flow_shift" if path == "flow" else "time_uniform"
    return families.build("dpmpp", Grid(kind=kind, steps=steps, start=start, end=0.02), path).program()


def make_case(make: Any, program: SolverProgram) -> Case:
    case = make(torch.float32)
    case.pipe.set_progress_bar_config(disable=True)
    case.pipe.scheduler = LearnedSolverScheduler.from_solver(program, case.pipe)
    return case


def test_a_wrong_number_of_steps_is_refused() -> None:
    case = make_case(make_ddpm, make_program())
    with pytest.raises(ValueError, match="makes 6 evaluations, not 50; call the pipeline with num_inference_steps=6$"):
        case.pipe(num_inference_steps=50)


@pytest.mark.parametrize(("make", "name"), [(make_sd, "timesteps"), (make_sd, "sigmas"), (make_sd3, "sigmas")])
def test_levels_of_others_are_refused(make: Any, name: str) -> None:
    case = make_case(make, make_program("flow" if make is make_sd3 else "vp"))
    positive, negative = embeddings(torch.float32, 5, 12)
    options: dict[str, Any] = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    if make is make_sd3:
        options |= {"pooled_prompt_embeds": positive[:, 0, :6], "negative_pooled_prompt_embeds": negative[:, 0, :6]}
    with pytest.raises(ValueError, match=f"its own noise levels along; call the pipeline without {name}"):
        case.pipe(**options, **{name: [900.0, 500.0, 100.0]}, height=SIZE, width=SIZE)


def test_the_progress_bar_counts_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    case = make_case(make_sd, families.build("heun", Grid(steps=3, start=40.0, end=0.03)).program())
    assert case.pipe.scheduler.nfe == 6
    case.pipe.set_progress_bar_config(disable=False)
    case.call()
    assert "6/6" in capsys.readouterr().err


def test_guidance_that_the_solver_was_not_fitted_for_is_told(tmp_path: Path) -> None:
    program = make_program()
    for fitted in (GUIDANCE, 7.5):
        save_solver(tmp_path / "solver.json", program, provenance={"guidance": fitted})
        case = make_sd(torch.float32)
        case.pipe.set_progress_bar_config(disable=True)
        case.pipe.scheduler = LearnedSolverScheduler.from_solver(tmp_path / "solver.json", case.pipe)
        if fitted == GUIDANCE:
            case.call()
            continue
        with pytest.warns(UserWarning, match="fitted for guidance scale 7.5 and is used with 3"):
            case.call()
        assert copy.deepcopy(case.pipe.scheduler).config == case.pipe.scheduler.config
        with pytest.warns(UserWarning, match="fitted for guidance scale 7.5 and is used with 1$"):
            case.pipe.scheduler.check_guidance(1)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_is_the_restart_written_out(strength: float) -> None:
    """One straight line through the noised image, then the solver's own rows."""
    from diffusers import StableDiffusionImg2ImgPipeline

    program = make_program()
    case = make_case(make_sd, program)
    pipe: Any = StableDiffusionImg2ImgPipeline(**case.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    positive, negative = embeddings(torch.float32, 5, 12)
    image = torch.randn(BATCH, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(6))

    def run() -> Tensor:
        return pipe(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            image=image,  # latents
            strength=strength,
            num_inference_steps=6,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(7),
            output_type="latent",
        ).images

    begin = 6 - int(6 * strength)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(7))
    rows = torch.cat([program.A, program.B], dim=1)[[*range(6), -1]].float().tolist()
    alpha, sigma = program.alpha.tolist(), program.sigma.tolist()
    timesteps = torch.tensor(case.pipe.scheduler.timesteps.tolist())
    x, registers = alpha[begin] * image + sigma[begin] * noise, [noise]
    with torch.no_grad():
        for k in range(begin, 6):
            denoised = (x - sigma[k] * case.network(x, timesteps[k].expand(BATCH))) / alpha[k]
            if k == begin:
                registers = [(x - alpha[k] * denoised) / sigma[k], *[denoised] * k]
            registers.append(denoised)
            x = sum((c * value for c, value in zip(rows[k + 1], registers, strict=False)), torch.zeros(()))
    assert_close_to_scale(run(), x, 1e-5)
    assert torch.equal(run(), run())


def test_inpainting_keeps_what_the_mask_keeps() -> None:
    from diffusers import StableDiffusionInpaintPipeline

    case = make_case(make_sd, make_program())
    pipe: Any = StableDiffusionInpaintPipeline(**case.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    positive, negative = embeddings(torch.float32, 5, 12)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(6)) * 2 - 1
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., SIZE // 2 :] = 1

    def run(strength: float) -> Tensor:
        return pipe(
            prompt_embeds=positive[:1],
            negative_prompt_embeds=negative[:1],
            image=image,
            mask_image=mask,
            strength=strength,
            height=SIZE,
            width=SIZE,
            num_inference_steps=6,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(7),
            output_type="latent",
        ).images

    whole, half = run(1.0), run(0.5)
    kept = mask.expand_as(whole) == 0
    torch.testing.assert_close(whole[kept], half[kept])
    assert bool(half.isfinite().all()) and scale_error(half, whole) > 1e-2


def test_levels_that_flux_image_to_image_sends_of_its_own_are_understood() -> None:
    from diffusers import FluxImg2ImgPipeline

    case = make_case(make_flux, make_program("flow"))
    parts = {
        name: part for name, part in case.pipe.components.items() if name not in ("image_encoder", "feature_extractor")
    }
    pipe: Any = FluxImg2ImgPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    positive, _ = embeddings(torch.float32, 5, 12)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(6))
    images = [
        pipe(
            prompt_embeds=positive[:1],
            pooled_prompt_embeds=positive[:1, 0, :6],
            image=image,
            strength=strength,
            height=SIZE,
            width=SIZE,
            num_inference_steps=6,
            generator=torch.Generator().manual_seed(7),
            output_type="latent",
        ).images
        for strength in (0.2, 1.0)
    ]
    assert scale_error(*images) > 1e-2


def test_a_saved_pipeline_loads_and_another_scheduler_takes_over(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, DDPMPipeline

    case = make_case(make_ddpm, make_program())
    case.pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["solverdistill.consumers.diffusers", "LearnedSolverScheduler"]
    loaded: Any = DDPMPipeline.from_pretrained(tmp_path)
    assert loaded.scheduler.config["solver_rows"] == case.pipe.scheduler.config["solver_rows"]
    ddim: Any = DDIMScheduler.from_config(loaded.scheduler.config)
    assert torch.equal(ddim.alphas_cumprod, DDIMScheduler(**CONFIGS["epsilon"]).alphas_cumprod)
    again = LearnedSolverScheduler.from_solver(
        make_program(), loaded
    )  # the network is known from our own configuration
    assert again.config["solver_timesteps"] == loaded.scheduler.config["solver_timesteps"]


def test_the_page_of_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8"), re.M | re.S
    )
    monkeypatch.chdir(tmp_path)
    save_solver("solver.json", make_program(), provenance={"guidance": 5.0})
    case = make_sd(torch.float32)
    pipe, (positive, negative) = case.pipe, embeddings(torch.float32, 5, 12)
    pipe.set_progress_bar_config(disable=True)
    pipe.encode_prompt = lambda *_, **__: (positive[:1], negative[:1])  # the tiny pipeline has no text encoder
    names: dict[str, Any] = {"pipe": pipe, "prompt": "a cat"}
    exec(compile(block, "diffusers.md", "exec"), names)
    assert names["image"].size == (SIZE, SIZE)
    again: Any = LearnedSolverScheduler.from_pretrained("scheduler")
    assert all(again.config[name] == pipe.scheduler.config[name] for name in again.config if name != "_class_name")


def test_a_pipeline_equals_its_teacher(tmp_path: Path) -> None:
    """A folder as a teacher that a solver is fitted with, and as the pipeline that plays it."""
    from solverdistill.teachers.diffusers import ddpm

    case = make_case(make_ddpm, make_program())
    make_ddpm(torch.float32).pipe.save_pretrained(tmp_path)
    teacher = ddpm(str(tmp_path))
    family = families.build("epd", Grid("time_uniform", steps=3, start=0.98, end=0.02), teacher.path, points=2)
    params = family.init(2)
    provenance = {"teacher": teacher.description()}
    file = save_solver(tmp_path / "solver.json", family.program(params), family.hyperparameters(), params, provenance)
    case.pipe.scheduler = LearnedSolverScheduler.from_solver(file)  # the network: as the file says
    with torch.no_grad():
        expected = sample(family.program(params), teacher, case.noise)
    assert_close_to_scale(case.call(), expected, 1e-5)


@pytest.mark.slow
def test_the_standalone_module_needs_only_diffusers(tmp_path: Path) -> None:
    """In a process that cannot import this package."""
    program = make_program()
    written = write_scheduler(program, tmp_path, CONFIGS["epsilon"], standalone=True)
    assert [path.name for path in written] == ["scheduler_config.json", STANDALONE]
    code = f"""
import sys
sys.modules["solverdistill"] = None
import torch
from {Path(STANDALONE).stem} import LearnedSolverScheduler
scheduler = LearnedSolverScheduler.from_pretrained(".")
x = torch.ones(1, 4)
for t in scheduler.timesteps:
    x = scheduler.step(0.1 * x, t, x).prev_sample
print(x.tolist()[0][0])
try:
    LearnedSolverScheduler.from_solver("solver.json")
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    value, message = result.stdout.strip().splitlines()

    def denoiser(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma[:, None] * 0.1 * x) / alpha[:, None]

    assert float(value) == pytest.approx(float(sample(program, denoiser, torch.ones(1, 4))[0, 0]), rel=1e-5)
    assert message == "reading a solver.json needs the package solverdistill; from_pretrained does not"


def test_the_script_writes_a_scheduler_and_sigmas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = Grid(steps=4, start=40.0, end=0.03)
    save_solver(tmp_path / "solver.json", families.build("dpmpp", grid).program())
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(CONFIGS["epsilon"]))

    monkeypatch.chdir(tmp_path)
    main(["solver.json", "--sigmas", "--diffusers", "out", "--network", ".", "--standalone"])
    out, err = capsys.readouterr()
    levels = [float(word) for word in out.split(",")]
    assert levels == pytest.approx([40.0, *families.build("dpmpp", grid).grid[1:4], 0.0])
    assert "does not hold its coefficients" in err and err.count("warning") == 1
    assert (
        LearnedSolverScheduler.from_pretrained(tmp_path / "out").nfe == 4 and (tmp_path / "out" / STANDALONE).exists()
    )
    with pytest.raises(SystemExit, match="2"):
        main(["solver.json", "--diffusers", "out2"])
    err = capsys.readouterr().err
    assert err.startswith("error: the solver file does not say which timesteps") and err.count("\n") == 1
