"""What the documentation shows works: its code is taken from the pages and executed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import solverdistill
from solverdistill import Grid, families, load_solver, read_solver, sample, save_solver, zoo
from solverdistill.commands.main import main
from tests.helpers import SHIPPED

ROOT = Path(__file__).parents[2]
PAGE = "docs/adding-a-family.md"
TWO_STEPS = ["logger=csv", "evaluation=off", "trainer=cpu", "fit=gradient"]
TWO_STEPS += [f"fit.gradient.{setting}" for setting in ("iterations=2", "batch_size=2", "validations=1")]
FEW_SAMPLES = ["targets.train_samples=4", "targets.validation_samples=2", "targets.cache=null"]


def fences(page: str, language: str) -> list[str]:
    """Code blocks of a language, in the order of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


def run(command: list[str], folder: Path, settings: dict[str, str] | None = None) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), **(settings or {})}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository to which the families of the page were added as the page says."""
    folder = tmp_path_factory.mktemp("repository")
    for part in ("solverdistill", "configs", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "goldens"))
    for part in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / part, folder)
    family, roster_line, _, own, _ = fences(PAGE, "python")
    (folder / "solverdistill" / "families" / "learned" / "two_point.py").write_text(family, encoding="utf-8")
    (folder / "my_solvers.py").write_text(own, encoding="utf-8")
    (folder / "my_configs" / "solver").mkdir(parents=True)
    two_point, warped = fences(PAGE, "yaml")
    (folder / "configs" / "solver" / "two_point.yaml").write_text(two_point, encoding="utf-8")
    (folder / "my_configs" / "solver" / "warped.yaml").write_text(warped, encoding="utf-8")
    roster = folder / "solverdistill" / "families" / "registry.py"
    text, added = re.subn(r"(for cls in \([^()]*)\)", r"\1, TwoPoint)", roster.read_text(encoding="utf-8"))
    assert added == 1
    roster.write_text(
        text.replace("\nfrom solverdistill.noise.grids", f"\n{roster_line}from solverdistill.noise.grids")
    )
    return folder


# The commands of both families, run as one process each: a sweep, and one run of the tests.


@pytest.mark.slow
def test_the_families_of_the_page_build_trace_export_and_load(repository: Path) -> None:
    _, _, first, _, second = fences(PAGE, "python")
    run([sys.executable, "-c", first + second], repository)
    names = {"two_point.json": "two_point", "warped.json": "my_solvers.WarpedIPNDM"}
    for file, name in names.items():
        read = read_solver(repository / file)
        assert (read.program.nfe, read.family["name"]) == (6, name)


@pytest.mark.slow
def test_the_families_of_the_page_train(repository: Path) -> None:
    commands = [block.splitlines()[0] for block in fences(PAGE, "sh")]
    assert commands[0] == "python train.py solver=two_point model=edm_digits"
    assert commands[1] == "python train.py --config-dir my_configs solver=warped model=edm_digits"
    sweep = ["train.py", "-m", *commands[1].replace("solver=warped", "solver=two_point,warped").split()[2:]]
    output = [f"hydra.sweep.dir={repository}/run", "hydra.sweep.subdir=${hydra:job.num}"]
    run([sys.executable, *sweep, *output, *TWO_STEPS, *FEW_SAMPLES], repository)
    trained = {"two_point": ("position", (3,)), "my_solvers.WarpedIPNDM": ("log_exponents", (2,))}
    for job, (name, (param, shape)) in enumerate(trained.items()):
        read = read_solver(repository / "run" / str(job) / "solver-last.json")
        assert read.family["name"] == name
        assert read.params[param].shape == shape and bool((read.params[param] != 0).all())


@pytest.mark.slow
def test_the_families_of_the_page_pass_the_roster_tests(repository: Path) -> None:
    first, second = (block.splitlines()[1] for block in fences(PAGE, "sh"))
    setting, own = second.split(" ", 1)
    command, name = own.split(" -k ")
    assert first == f"{command} -k two_point" and command.startswith("python -m pytest")
    chosen = ["-k", f"two_point or {name}", "-p", "no:cacheprovider"]
    said = run([sys.executable, *command.split()[1:], *chosen], repository, dict([setting.split("=")]))
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None and int(passed[1]) > 100 and "skipped" not in said, said


def test_the_readme_plays_a_solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = next(block for block in fences("README.md", "python") if "load_solver" in block)
    family = families.build("epd", Grid("polynomial", steps=2))
    params = family.init(0)
    monkeypatch.chdir(tmp_path)
    save_solver("solver.json", family.program(params), family.hyperparameters(), params)
    names = {"denoiser": lambda x, alpha, sigma: x * (alpha / (alpha**2 + sigma**2)).view(-1, 1, 1, 1)}
    exec(compile(block, "README.md", "exec"), names)
    images = names["images"]
    assert isinstance(images, torch.Tensor) and images.shape == (16, 3, 32, 32) and bool(images.isfinite().all())


def test_the_readme_works_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = next(block for block in fences("README.md", "python") if "families.build" in block)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    states = names["states"]
    assert isinstance(states, torch.Tensor) and states.shape == (3, 16, 6)
    program = read_solver("solver.json").program
    assert f"# {program.nfe} {program.depth}\n" in block  # the numbers that the page shows


def test_the_one_call_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distill = solverdistill.distill

    def on_a_toy(teacher: str, solver: str, nfe: int) -> solverdistill.Distilled:
        few = {"train_samples": 8, "validation_samples": 4, "test_samples": 4, "cache": None}
        assert teacher in {path.stem for path in (ROOT / "configs" / "model").glob("*.yaml")}
        return distill("mixture", solver, nfe, fit="least_squares", targets=few)

    monkeypatch.setattr(solverdistill, "distill", on_a_toy)
    monkeypatch.chdir(tmp_path)
    block = next(block for block in fences("README.md", "py") if "sd.distill" in block)
    exec(compile(block, "README.md", "exec"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["solver.json"]
    assert load_solver("solver.json").nfe == 6


def test_the_readme_works_in_diffusers_as_its_page_does() -> None:
    block = next(block for block in fences("README.md", "py") if "LearnedSolverScheduler" in block)
    page = "".join(fences("docs/diffusers.md", "python"))
    for line in filter(None, block.splitlines()):
        assert line.replace(")", "").split(".images")[0] in page, line


@pytest.mark.parametrize("group", ["model", "solver", "fit", "objective", "optimizer", "targets"])
def test_the_readme_names_every_choice(group: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))
    if group == "solver":  # one that is new in the roster can wait for its line
        learned = SHIPPED - {cls.name for cls in families.CLASSICAL}
        assert learned <= set(names)
        names = sorted(learned)
    assert names and [name for name in names if f"`{name}`" not in text] == []


def test_what_the_readme_links_to_exists() -> None:
    for page in ("README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"


def test_the_commands_of_the_zoo_work(capsys: pytest.CaptureFixture[str]) -> None:
    block = next(block for block in fences("README.md", "sh") if "zoo list" in block)
    commands = [line.split("#")[0].split()[1:] for line in block.splitlines() if line.startswith("solverdistill zoo")]
    assert len(commands) == 2
    for command in commands:
        main(command)
        assert capsys.readouterr().out
    (name,) = re.findall(r'load_solver\("(zoo:[^"]+)"\)', (ROOT / "README.md").read_text(encoding="utf-8"))
    assert load_solver(name).nfe == 5
    assert f"{len(zoo.names())} published solvers" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_on_evaluating_plays_a_solver_in_k_diffusion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = fences("docs/evaluating.md", "python")
    family = families.build("epd", Grid("polynomial", steps=2))
    program = family.program(family.init(0))
    monkeypatch.chdir(tmp_path)
    save_solver("solver.json", program, family.hyperparameters(), family.init(0))
    noise = torch.randn(4, 3, 8, 8)

    def denoiser(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x * (alpha / (alpha**2 + sigma**2)).view(-1, 1, 1, 1)

    def model(x: torch.Tensor, sigma: torch.Tensor, class_cond: torch.Tensor) -> torch.Tensor:
        assert len(class_cond) == len(x)
        return denoiser(x, torch.ones_like(sigma), sigma)

    names = {"noise": noise, "model": model, "labels": torch.arange(4)}
    exec(compile(block, "evaluating.md", "exec"), names)
    torch.testing.assert_close(names["images"], sample(program, denoiser, noise), rtol=1e-4, atol=1e-5)
