"""Push, pull and cards, against a stub of the hub's library that keeps repositories in a folder."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from solverdistill import SolverFileError, read_solver, save_solver
from solverdistill.commands.main import main
from solverdistill.consumers.hub import model_card, pull_solver, push_solver
from solverdistill.families import build
from solverdistill.zoo import path_of


class Refusal(Exception):
    """Stands for any exception of the library."""


@dataclass
class CommitOperationAdd:
    path_in_repo: str
    path_or_fileobj: bytes


class Hub:
    """Repositories as folders; records what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.logged_in = folder, [], True
        hub = self

        class HfApi:
            def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
                if not hub.logged_in:
                    raise Refusal("401 Client Error.\nInvalid username or password.")
                hub.asked.append(("create_repo", repo_id, private, exist_ok))
                (hub.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
                return f"https://hub.test/{repo_id}"

            def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> None:
                names = [operation.path_in_repo for operation in operations]
                hub.asked.append(("create_commit", names, commit_message))
                for operation in operations:
                    (hub.folder / repo_id / operation.path_in_repo).write_bytes(operation.path_or_fileobj)

        def hf_hub_download(repo_id: str, filename: str, *, revision: str | None = None) -> str:
            hub.asked.append(("download", repo_id, filename, revision))
            path = hub.folder / repo_id / filename
            if not path.is_file():
                raise Refusal(f"404 Client Error: {filename} | not found")
            return str(path)

        self.module = types.ModuleType("huggingface_hub")
        for name, value in (
            ("HfApi", HfApi),
            ("CommitOperationAdd", CommitOperationAdd),
            ("hf_hub_download", hf_hub_download),
        ):
            setattr(self.module, name, value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made.module)
    return made


def solver_file(folder: Path, **provenance: Any) -> Path:
    family = build("dyweight", [80.0, 10.0, 1.0, 0.002], afs=True)
    params = family.init(0)
    return save_solver(folder / "mine.json", family.program(params), family.hyperparameters(), params, provenance)


def test_what_is_pushed_is_what_is_pulled(hub: Hub, tmp_path: Path) -> None:
    path = solver_file(tmp_path, teacher={"name": "me/net", "prediction": "eps"}, guidance=7.5)
    assert push_solver(path, "me/solver", private=True, message="first") == "https://hub.test/me/solver"
    assert hub.asked == [
        ("create_repo", "me/solver", True, True),
        ("create_commit", ["solver.json", "README.md"], "first"),
    ]
    pulled = pull_solver("me/solver", tmp_path / "pulled.json", revision="main")
    assert hub.asked[-1] == ("download", "me/solver", "solver.json", "main")
    assert pulled.read_bytes() == path.read_bytes()
    assert torch.equal(read_solver(pulled).program.B, read_solver(path).program.B)


def test_the_card_holds_what_the_file_says(tmp_path: Path) -> None:
    facts = {"name": "me/net | v2", "prediction": "eps"}
    card = model_card(solver_file(tmp_path, teacher=facts, guidance=7.5, metrics={"rmse": 0.25}), "me/solver", "mit")
    head, body = card.split("---\n")[1:]
    assert head.splitlines() == [
        "library_name: solverdistill",
        "tags:",
        *("- diffusion", "- ode-solver", "- sampler"),
        "license: mit",
    ]
    assert body.startswith("\n# solver\n")
    for row in (
        "| teacher | me/net \\| v2 |",
        "| guidance scale | 7.5 |",
        "| evaluations (nfe) | 2 |",
        "| one after the other (depth) | 2 |",
        "| solver family | dyweight |",
        "| rmse | 0.25 | measured when it was exported |",
    ):
        assert row in body.splitlines(), row
    assert "solverdistill pull me/solver --out solver.json" in body
    assert "LearnedSolverScheduler.from_solver" in body and "load_solver(" in body


def test_the_card_says_a_rule_of_guidance_in_words(tmp_path: Path) -> None:
    rule = {"scale": [2.0, 6.0], "interval": [0.8, 0.25], "channels": 3}
    card = model_card(solver_file(tmp_path, guidance=rule), "me/solver")
    assert "| guidance scale | 2 to 6, interval 0.8 to 0.25, channels 3 |" in card.splitlines()


def test_a_card_names_the_base_model_and_published_results_and_diffusers_where_it_can_play(tmp_path: Path) -> None:
    flux = model_card("zoo:dyweight-flux-nfe5", "me/flux")
    assert "base_model: black-forest-labs/FLUX.1-dev\n" in flux and "LearnedSolverScheduler" in flux
    assert "512x512" in flux
    cifar = model_card("zoo:epd-cifar10-nfe8", "me/cifar")
    assert "base_model" not in cifar and "LearnedSolverScheduler" not in cifar
    assert "| FID | 4.33 | Zhu et al., ICCV 2025, Table 1 |" in cifar
    bare = save_solver(tmp_path / "bare.json", build("euler", [2.0, 1.0]).program())
    assert "| solver family | a table without a family |" in model_card(bare, "me/bare")


def test_the_usage_of_a_card_is_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = solver_file(tmp_path)
    code = model_card(path, "me/solver").split("```python\n")[1].split("```")[0]
    path.rename(tmp_path / "solver.json")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"shape": (2, 3), "denoiser": lambda x, alpha, sigma: x / 2}
    exec(code, names)
    assert names["images"].shape == (2, 3)


def test_only_solver_files_are_pushed_and_kept(hub: Hub, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_text(solver_file(tmp_path).read_text()[:-40])
    with pytest.raises(SolverFileError, match="truncated"):
        push_solver(damaged, "me/solver")
    assert hub.asked == []
    (hub.folder / "me" / "solver").mkdir(parents=True)
    (hub.folder / "me" / "solver" / "solver.json").write_bytes(damaged.read_bytes())
    kept = tmp_path / "kept.json"
    kept.write_text("before")
    with pytest.raises(SolverFileError, match="truncated"):
        pull_solver("me/solver", kept)
    assert kept.read_text() == "before"


def test_a_refusal_of_the_hub_is_one_sentence(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.logged_in = False
    with pytest.raises(ValueError, match="refused me/solver: 401 Client Error. Invalid username or password.; `hf"):
        push_solver(solver_file(tmp_path), "me/solver")
    with pytest.raises(ValueError, match="the hub gave no solver.json of me/nothing: 404"):
        pull_solver("me/nothing", tmp_path / "x.json")
    with pytest.raises(SystemExit) as exit_code:
        main(["pull", "me/nothing", "--out", str(tmp_path / "x.json")])
    told = capsys.readouterr().err
    assert exit_code.value.code == 2 and told.startswith("error: the hub gave no") and told.count("\n") == 1


@pytest.mark.parametrize("name", ["solver", "../x", "me/", "me/a b", "https://hub.test/me/solver"])
def test_names_that_are_no_repository_are_refused(name: str, tmp_path: Path) -> None:
    for act in (lambda: model_card(solver_file(tmp_path), name), lambda: pull_solver(name, tmp_path / "x.json")):
        with pytest.raises(ValueError, match="is no name of a repository"):
            act()


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        push_solver(solver_file(tmp_path), "me/solver")


def test_the_stub_has_the_signatures_of_the_library() -> None:
    library = pytest.importorskip("huggingface_hub")
    import inspect

    create_repo = inspect.signature(library.HfApi.create_repo).parameters
    create_commit = inspect.signature(library.HfApi.create_commit).parameters
    download = inspect.signature(library.hf_hub_download).parameters
    assert {"repo_id", "private", "exist_ok"} <= set(create_repo)
    assert {"repo_id", "operations", "commit_message"} <= set(create_commit)
    assert {"repo_id", "filename", "revision"} <= set(download)
    assert {"path_in_repo", "path_or_fileobj"} <= set(inspect.signature(library.CommitOperationAdd).parameters)


def test_the_command_line_pushes_from_the_zoo(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["push", "zoo:dss-sit-nfe6", "me/sit", "--dry-run"])
    assert capsys.readouterr().out.startswith("---\n") and hub.asked == []
    main(["push", "zoo:dss-sit-nfe6", "me/sit"])
    main(["pull", "me/sit", "--out", str(tmp_path / "solver.json")])
    assert capsys.readouterr().out.splitlines() == ["https://hub.test/me/sit", str(tmp_path / "solver.json")]
    assert (tmp_path / "solver.json").read_bytes() == path_of("dss-sit-nfe6").read_bytes()
