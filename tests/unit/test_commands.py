"""The one command: what it lists, how little it loads before it works, completion, and mistakes."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from solverdistill.commands import COMMANDS
from solverdistill.commands.completion import SCRIPTS, complete
from solverdistill.commands.entry import divide, run_name
from solverdistill.commands.main import main
from solverdistill.support.mistakes import explain
from solverdistill.training.config_files import find_configs
from solverdistill.version import __version__

ROOT = Path(__file__).parents[2]
WITH_OPTIONS = [command.module for command in COMMANDS.values() if command.config is None]


def python(code: str, *arguments: str, folder: Path = ROOT) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True, timeout=120).stdout


def test_help_lists_every_command_and_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    rows = lines[lines.index("commands:") + 1 :]
    assert [row.split()[0] for row in rows] == list(COMMANDS)
    main(["--version"])
    assert capsys.readouterr().out == f"solverdistill {__version__}\n"


@pytest.mark.parametrize(("words", "told"), [([], "name a command"), (["trian"], "'trian' is no command")])
def test_what_is_no_command_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {told}"


def test_help_loads_neither_torch_nor_hydra() -> None:
    modules = [f"solverdistill.commands.{name}" for name in (*WITH_OPTIONS, "main")]
    code = f"""
import sys
from importlib import import_module
for module in map(import_module, {modules!r}):
    text = module.usage() if module.__name__.endswith(".main") else module.parser().format_help()
    assert text.startswith("usage: solverdistill "), text
print([name for name in ("torch", "numpy", "hydra", "yaml", "rich") if name in sys.modules])
"""
    assert python(code) == "[]\n"


def test_help_of_a_command_with_settings_shows_its_examples_and_loads_no_torch() -> None:
    code = """
import sys
from solverdistill.commands.main import main
try:
    main(["sample", "--help"])
except SystemExit as ended:
    assert not ended.code
print([name for name in ("torch", "lightning") if name in sys.modules])
"""
    lines = python(code).splitlines()
    assert lines[0] == "Images from a solver file and its teacher: grid.png and a folder of PNG files."
    assert any(line.startswith("model: ") and "edm_digits" in line for line in lines)
    assert lines[-1] == "[]"


def test_flags_may_stand_anywhere() -> None:
    words = ["solver=epd", "--config-dir", "my=conf", "~solver.grid", "-m", "+a=b", "--cfg", "job", "--config-dir=c"]
    flags = ["--config-dir", "my=conf", "-m", "--cfg", "job", "--config-dir=c"]
    assert divide(words) == (flags, ["solver=epd", "~solver.grid", "+a=b"])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("solverdistill tr", ["train"]),
        ("solverdistill nothing ", []),
        ("solverdistill train so", ["solver="]),
        ("solverdistill train  model=x --config-d", ["--config-dir"]),
        ("solverdistill train solver=epd", ["solver=epd", "solver=epd_ipndm"]),
        (
            "solverdistill train -m solver=ld3,dod",
            [f"solver=ld3,dode_{n}" for n in ("ddim", "deis", "dpm", "edm", "ipndm")],
        ),
        ("solverdistill sample se", ["seeds="]),
        ("solverdistill sample targets=", ["targets=auto", "targets=default", "targets=dopri5"]),
        ("solverdistill export a.json --st", ["--standalone"]),
        ("solverdistill export a", []),
        ("solverdistill completion z", ["zsh"]),
        ("solverdistill zoo s", ["show"]),
        ("solverdistill zoo show ays-sd", ["ays-sd15-nfe10", "ays-sdxl-nfe10"]),
        ("solverdistill zoo list ay", []),
    ],
)
def test_words_are_completed(line: str, found: list[str]) -> None:
    assert complete(line) == found


def test_all_commands_and_groups_are_completed() -> None:
    assert complete("solverdistill ") == complete("solverdistill") == [*COMMANDS, "--help", "--version"]
    groups = {folder.name for folder in find_configs().iterdir() if folder.is_dir()}
    offered = {word.removesuffix("=") for word in complete("solverdistill train ")}
    assert groups | {"seed", "guidance", "start", "budget", "ckpt_path", "run_name", "output_dir"} == offered


def test_a_run_is_named_by_its_solver_or_by_what_it_begins_at() -> None:
    gas, points = (OmegaConf.create(cost) for cost in ({"nfe": 6}, {"nfe": None, "depth": 3}))
    assert run_name("gas", "edm_digits", gas, None) == "gas-edm_digits-nfe6"
    assert run_name("parallel", "mixture", points, None) == "parallel-mixture-depth3"
    assert run_name("auto", "mixture", OmegaConf.create({"nfe": None, "depth": None}), None) == "auto-mixture-nfe6"
    assert run_name("epd", "mixture", gas, "runs/a/gas4.json") == "start-gas4-mixture"
    assert run_name("epd", "mixture", gas, "zoo:ays-sd1.5") == "start-ays-sd1.5-mixture"


def test_choices_of_your_own_are_completed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "edm_mine.yaml").touch()
    found = complete(f"solverdistill train --config-dir {tmp_path} model=edm_mi")
    assert found == ["model=edm_mine"]


def test_bash_completes() -> None:
    ask = """
solverdistill() { "$PYTHON" -m solverdistill "$@"; }
COMP_WORDBREAKS=$' \\t\\n=:'
for COMP_LINE in "solverdistill train --config-d" "solverdistill train solver=epd"; do
    COMP_POINT=${#COMP_LINE}
    _solverdistill
    echo "${COMPREPLY[@]}"
done
"""
    command = ["bash", "-c", SCRIPTS["bash"] + ask]
    environment = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)
    assert (done.stdout, done.stderr) == ("--config-dir\nepd epd_ipndm\n", "")


@pytest.mark.parametrize(
    ("module", "sentence"), [("solverdistill.commands.train", "a mistake"), ("solverdistill_more", None), (None, None)]
)
def test_a_mistake_found_by_a_command_is_a_sentence(module: str | None, sentence: str | None) -> None:
    names = {"__name__": "__main__", "__spec__": module and ModuleSpec(module, None)}
    with pytest.raises(ValueError) as raised:
        exec("raise ValueError('a  mistake')", names)
    assert explain(raised.value) == sentence


@pytest.mark.parametrize(("package", "extra"), [("diffusers", "diffusers"), ("hydra", "train"), ("yaml", "fit")])
def test_an_extra_that_is_not_installed_is_named(package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModuleNotFoundError) as raised:
        __import__(f"{package}.part")
    said = f"{package} is not installed, which this needs; pip install 'solverdistill[{extra}]'"
    assert explain(raised.value) == said


def test_a_command_without_its_extra_says_so(tmp_path: Path) -> None:
    code = "import sys; sys.modules['hydra'] = None; from solverdistill.commands.main import main; main(['train'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert ran.returncode == 2
    assert ran.stderr == "error: hydra is not installed, which this needs; pip install 'solverdistill[train]'\n"
