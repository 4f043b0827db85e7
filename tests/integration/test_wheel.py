"""The wheel, unpacked and used in an empty folder: every command, a sweep on submitit, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from solverdistill import load_solver

ROOT = Path(__file__).parents[2]
DRIVER = """
import json, sys
from solverdistill.commands.main import main
import solverdistill
print(solverdistill.__file__)
for words in json.loads(sys.argv[1]):
    code = None
    print("== begin", words[0], flush=True)
    try:
        main(words)
    except SystemExit as ended:
        code = ended.code
    print("== end", words[0], code or 0, flush=True)
"""
SIZES = [f"targets.{split}_samples=4" for split in ("train", "validation", "test")]
TINY = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "logger=csv", "evaluation=off", *SIZES]
TINY += ["fit=gradient", *(f"fit.gradient.{setting}" for setting in ("iterations=2", "batch_size=2", "validations=1"))]
MINE = ["--config-dir", "conf", "model=mine"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing but a teacher of one's own and a choice that names it."""
    code = "from solverdistill.teachers.mixture import toy_mixture\n\ndef teacher():\n    return toy_mixture()\n"
    (tmp_path / "my_teacher.py").write_text(code)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: my_teacher.teacher\n")
    return tmp_path


def run(site: Path, folder: Path, *command: str) -> str:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, "SOLVERDISTILL_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, env={**os.environ, **own}, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_the_configurations_and_the_command(site: Path) -> None:
    shipped = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    inside = site / "solverdistill" / "configs"
    assert {path.relative_to(inside) for path in inside.rglob("*.yaml")} == shipped
    (entry,) = site.glob("*.dist-info/entry_points.txt")
    assert "solverdistill = solverdistill.commands.main:main" in entry.read_text()
    assert not {"tests", "scripts", "configs"} & {path.name for path in site.iterdir()}


@pytest.mark.slow
def test_every_command_works_in_an_empty_folder(site: Path, folder: Path) -> None:
    digits, solver = ["model=edm_digits", "targets.reference.steps=6"], "out/solver.json"
    words = [
        ["train", "solver=dss", "solver.nfe=4", *digits, *TINY, "hydra.run.dir=out"],
        ["make-targets", *digits, *SIZES, "trainer=cpu"],
        ["sample", "model=edm_digits", f"solver_file={solver}", "seeds=0-2", "hydra.run.dir=images"],
        ["evaluate", *digits, f"solvers=[{solver}]", "baselines=[]", "samples=4", "real=reference", "extractor=null"],
        ["search-grid", *MINE, "trainer=cpu", "+search.steps=3", "+search.samples=4", "+search.reference.steps=9"],
        ["check-teacher", "+check.samples=32", *MINE],
        ["export", solver, "--sigmas"],
        ["sample", "model=edm_digits", f"solver_file={solver}", "seeds=x", "hydra.run.dir=refused"],
    ]
    words[3] += ["hydra.run.dir=compared"]
    lines = run(site, folder, "-c", DRIVER, json.dumps(words)).splitlines()
    assert Path(lines[0]) == site / "solverdistill" / "__init__.py"
    ends = [line.split()[2:] for line in lines if line.startswith("== end ")]
    assert ends == [[word[0], "2" if "seeds=x" in word else "0"] for word in words]
    assert load_solver(folder / solver).nfe == 4
    assert len(list((folder / "images" / "images").iterdir())) == 3
    assert (folder / "compared" / "report.html").is_file() and not (folder / "refused").exists()
    printed = json.loads(lines[lines.index("== begin search-grid") + 1])
    assert len(printed) == 4 and printed[0] == 80.0
    levels = [float(level) for level in lines[lines.index("== begin export") + 1].split(",")]
    assert len(levels) == 5 and levels[0] == 80.0 and levels[-1] == 0.0
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        *("conf", "my_teacher.py", "home", "out", "images", "compared")
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_write_one_folder(launcher: str, site: Path, folder: Path) -> None:
    start = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29713"]
    start = [*(start if launcher == "torchrun" else []), "-m", "solverdistill", "train"]
    run(
        site,
        folder,
        *start,
        *TINY,
        *MINE,
        "solver=epd",
        "trainer=ddp",
        "trainer.devices=2",
        "hydra.run.dir=out/${now:%f}",
    )
    (made,) = (folder / "out").iterdir()
    assert load_solver(made / "solver.json").nfe == 5


@pytest.mark.slow
def test_a_submitit_sweep_trains_every_job(site: Path, folder: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = ["-m", "solver=epd,dss", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "solver.nfe=8"]
    run(site, folder, "-m", "solverdistill", "train", *TINY, *MINE, *sweep)
    found = sorted(path.parent.name.rsplit("-", 1)[0] for path in (folder / "sweep").glob("*/solver.json"))
    assert found == ["dss-mine-nfe8", "epd-mine-nfe8"]
