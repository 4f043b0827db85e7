"""What importers refuse, what they ask for, and that nothing in a file is run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solverdistill import load_solver, save_solver
from solverdistill.commands.import_coefficients import main
from solverdistill.families import build
from solverdistill.importers import FORMATS, Settings, import_solver
from solverdistill.importers.known_models import find_model, model_named_in
from solverdistill.support.mistakes import explain

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "tests" / "goldens" / "published"


def table(name: str, part: str) -> dict[str, Any]:
    entries = json.loads((PUBLISHED / f"{name}.json").read_text())["tables"]
    return next(entry for entry in entries if part in entry["source"])


def write(folder: Path, document: Any, name: str = "table.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def reconstruct(meta: dict[str, Any]) -> None:
    """Stands for the function of that name while a pickle is written."""


class Persistent:
    """Pickles as the EDM code base pickles an object: a record of state and source code."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        source = "raise SystemExit('the source in a pickle must never run')"
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return reconstruct, (self.meta,)


def published_pickle(path: Path, entry: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pickle of the structure of the published ones around the numbers of a table."""
    for name in ("torch_utils", "torch_utils.persistence", "solvers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    persistence, solvers = sys.modules["torch_utils.persistence"], sys.modules["solvers"]
    monkeypatch.setattr(persistence, "_reconstruct_persistent_obj", reconstruct, raising=False)
    monkeypatch.setattr(reconstruct, "__module__", "torch_utils.persistence")
    monkeypatch.setattr(reconstruct, "__qualname__", "_reconstruct_persistent_obj")

    def student_sampler() -> None: ...

    student_sampler.__module__, student_sampler.__qualname__ = "solvers", "student_sampler"
    monkeypatch.setattr(solvers, "student_sampler", student_sampler, raising=False)
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in entry["parameters"].items()}
    buffers = {name: torch.tensor(value) for name, value in entry.get("buffers", {}).items()}
    state = {**entry["init_kwargs"], "_init_args": (), "_init_kwargs": entry["init_kwargs"], "training": False}
    state |= {"_parameters": parameters, "_buffers": buffers, "_modules": {}, "_non_persistent_buffers_set": set()}
    loss = Persistent("loss", {**entry["loss"], "solver_stu": student_sampler})
    path.write_bytes(pickle.dumps({key: Persistent(entry["class_name"], state), "loss_fn": loss}))
    return path


@pytest.mark.parametrize(
    ("name", "part", "key"),
    [
        ("epd", "00003-cifar10-5-7-epd", "model"),
        ("epd", "00029-lsun_bedroom_ldm", "model"),
        ("adasde", "cifar10-6-9", "model"),
        ("dyweight", "00004-cifar-nfe6", "predictor"),
    ],
)
def test_a_pickle_and_a_table_of_the_same_numbers_are_the_same_solver(
    name: str, part: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = table(name, part)
    from_pickle = import_solver(published_pickle(tmp_path / "snapshot.pkl", entry, key, monkeypatch))
    from_table = import_solver(write(tmp_path, entry))
    for attribute in ("A", "B", "alpha", "sigma"):
        assert torch.equal(getattr(from_pickle.program, attribute), getattr(from_table.program, attribute))
    assert from_pickle.provenance["teacher"] == from_table.provenance["teacher"]
    assert from_pickle.provenance["imported"]["file"] == "snapshot.pkl"


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the pickle ran",)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "snapshot.pkl"
    path.write_bytes(pickle.dumps({"model": Harmful()}))
    with pytest.raises(ValueError, match="not on the list"):
        import_solver(path)
    torch.save({"ema": Harmful()}, tmp_path / "student.pt")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        import_solver(tmp_path / "student.pt")
    assert capsys.readouterr().out == ""


def test_a_cut_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = published_pickle(tmp_path / "a.pkl", table("epd", "00001-cifar10"), "model", monkeypatch)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="truncated|cannot be read"):
        import_solver(path)


def test_an_unknown_file_is_told_everything_that_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("dear diary")
    (tmp_path / "page.json").write_text('{"a": [1, {"b": null}]}')
    torch.save({"state_dict": {"w": torch.zeros(3, 3)}}, tmp_path / "network.pt")
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"model": [1, 2]}))
    for name in ("notes.txt", "page.json", "network.pt", "other.pkl"):
        with pytest.raises(ValueError, match="none of the formats") as caught:
            import_solver(tmp_path / name)
        assert all(known in str(caught.value) for known in FORMATS)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        import_solver(tmp_path / "nothing.pkl")


def test_a_solver_file_is_told_to_be_one(tmp_path: Path) -> None:
    path = save_solver(tmp_path / "solver.json", build("euler", [2.0, 1.0]).program())
    with pytest.raises(ValueError, match="is a solver file already"):
        import_solver(path)


def changed(entry: dict[str, Any], where: str, name: str, value: Any) -> dict[str, Any]:
    return {**entry, where: {**entry[where], name: value}}


@pytest.mark.parametrize(
    ("where", "name", "value", "message"),
    [
        ("parameters", "weight_s", [[0.0, 1.0]], "weight_s of shape"),
        ("parameters", "r_params", [[float("nan"), 0.0]] * 3, "r_params that is not finite"),
        ("parameters", "r_params", "none", "r_params, which is not an array"),
        ("init_kwargs", "num_steps", 5, "r_params of shape"),
        ("init_kwargs", "num_steps", "4", "must say num_steps as an integer"),
        ("init_kwargs", "num_points", True, "must say num_points as an integer"),
        ("init_kwargs", "scale_time", "much", "must say scale_time as a number"),
        ("init_kwargs", "sampler_stu", "heun", "student 'heun'; known: epd, ipndm"),
        ("init_kwargs", "schedule_type", "cubic", "schedule 'cubic' is unknown"),
        ("init_kwargs", "schedule_type", "discrete", "needs a model with discrete times"),
    ],
)
def test_a_changed_epd_table_is_refused(where: str, name: str, value: Any, message: str, tmp_path: Path) -> None:
    entry = changed(table("epd", "00002-cifar10-4-5-epd"), where, name, value)
    with pytest.raises(ValueError, match=message):
        import_solver(write(tmp_path, entry))


def test_a_changed_mask_of_dyweight_is_refused(tmp_path: Path) -> None:
    entry = table("dyweight", "00000-cifar-nfe3")
    mask = [[1, 1, 1, 1]] * 4
    with pytest.raises(ValueError, match="has been changed"):
        import_solver(write(tmp_path, changed(entry, "buffers", "mask", mask)))


def test_a_dyweight_table_without_its_schedule_says_what_is_assumed(tmp_path: Path) -> None:
    entry = {**table("dyweight", "00000-cifar-nfe3"), "loss": {}}
    found = import_solver(write(tmp_path, entry))
    assert found.remarks == ["the file does not say its schedule; polynomial, the published recipe, is assumed"]
    assert torch.equal(found.program.B, import_solver(write(tmp_path, table("dyweight", "00000-cifar-nfe3"))).program.B)


def test_the_model_is_asked_for_where_nothing_tells_it(tmp_path: Path) -> None:
    entry = {**table("dyweight", "00000-cifar-nfe3"), "loss": {}, "source": "snapshot.pkl"}
    with pytest.raises(ValueError, match="does not say which model it belongs to"):
        import_solver(write(tmp_path, entry))
    assert import_solver(write(tmp_path, entry), Settings(model="ffhq")).program.nfe == 3
    with pytest.raises(ValueError, match="model 'dog' is unknown; known: cifar10"):
        import_solver(write(tmp_path, entry), Settings(model="dog"))


def test_names_of_models_are_found_as_words() -> None:
    assert model_named_in("exps/00029-lsun_bedroom_ldm-nfe3") is find_model("lsun_bedroom_ldm")
    assert model_named_in("edited/transit.pkl") is None
    assert model_named_in("exps/00036-mscoco-nfe8") is find_model("sd15")


def ld3_document() -> dict[str, torch.Tensor]:
    family = build("ld3", [80.0, 20.0, 3.0, 0.002], base="ipndm", order=3)
    params = family.init(0)
    params["params2"] = torch.tensor([0.0, 0.01, -0.02, 0.0])
    timeline = family.prepare({name: value.double() for name, value in params.items()})
    told = torch.stack([timeline.told(i).sigma for i in range(4)])
    return {**params, "best_t_steps": torch.cat([timeline.s, told])}


def test_ld3_asks_for_its_solver_and_checks_its_times(tmp_path: Path) -> None:
    document, path = ld3_document(), tmp_path / "best_v2.pt"
    torch.save(document, path)
    assert import_solver(path, Settings(solver="ipndm", order=3)).program.nfe == 3
    with pytest.raises(ValueError, match="does not say which solver"):
        import_solver(path)
    for place, message in ((1, "solver times"), (5, "network times")):
        times = document["best_t_steps"].clone()
        times[place] *= 1.01
        torch.save({**document, "best_t_steps": times}, path)
        with pytest.raises(ValueError, match=message):
            import_solver(path, Settings(solver="ipndm", order=3))
    torch.save({**document, "params2": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="4 params1, 3 params2"):
        import_solver(path, Settings(solver="ipndm"))


def test_gas_asks_for_its_model_and_refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    params = build("gas", torch.linspace(1, 1e-3, 5), "vp", init_from="paper").init(0)
    tensors = list(params.values())
    torch.save(tensors, tmp_path / "GAS_NFE=4")
    with pytest.raises(ValueError, match="does not say which model"):
        import_solver(tmp_path / "GAS_NFE=4")
    with pytest.raises(ValueError, match="GAS has no solver for Wan"):
        import_solver(tmp_path / "GAS_NFE=4", Settings(model="wan"))
    found = import_solver(tmp_path / "GAS_NFE=4", Settings(model="ffhq"))
    assert found.family is not None and found.family.grid[-1] == 1e-4
    tensors[1] = tensors[1] + torch.inf
    torch.save(tensors, tmp_path / "GAS_NFE=4")
    with pytest.raises(ValueError, match="not finite"):
        import_solver(tmp_path / "GAS_NFE=4", Settings(model="ffhq"))


def test_neuralsolver_asks_for_what_is_ambiguous(tmp_path: Path) -> None:
    one = {"timedeltas": [0.5, 0.5], "coeffs": [[0.0, 0.0], [-1.0, 0.0]]}
    with pytest.raises(ValueError, match="does not say what it was searched on"):
        import_solver(write(tmp_path, one))
    two = {"step2": one, "step1": {"timedeltas": [1.0], "coeffs": [[0.0]]}}
    with pytest.raises(ValueError, match="has tables step2, step1; give steps"):
        import_solver(write(tmp_path, two), Settings(model="sit"))
    assert import_solver(write(tmp_path, two), Settings(model="sit", steps=1)).program.nfe == 1
    sets = {"FM_DATA_DCN": two, "FM_DATA_SIT": two}
    with pytest.raises(ValueError, match="several sets of tables; give the model"):
        import_solver(write(tmp_path, sets), Settings(steps=1))
    assert import_solver(write(tmp_path, sets), Settings(steps=2, model="sit")).program.nfe == 2
    with pytest.raises(ValueError, match="not made of numbers"):
        import_solver(write(tmp_path, {**one, "coeffs": "x"}), Settings(model="sit"))


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("5", Settings(), "needs at least 2"),
        ("3, 7, 9", Settings(), "give its steps as nodes"),
        ("3, 7, 9", Settings(nodes=8), "no whole numbers between 0 and 8"),
        ("1999, 20", Settings(model="sd15"), "not within 0 to 999"),
        ("5, 7, 2", Settings(), "not strictly decreasing"),
        ("5, 2, 1", Settings(solver="rk9"), "'rk9' is unknown"),
    ],
)
def test_a_wrong_list_of_steps_is_refused(text: str, settings: Settings, message: str, tmp_path: Path) -> None:
    (tmp_path / "steps.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        import_solver(tmp_path / "steps.txt", settings)


JUNK: list[Any] = [None, True, -1, 0, 10**9, 10**400, 1e300, float("inf"), "x", [], [[]], [1], {}, {"a": 1}]


def places(document: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [prefix, *(place for key, value in items for place in places(value, (*prefix, key)))]


def put(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of the document with another value at one place."""
    if not place:
        return value
    copied = dict(document) if isinstance(document, dict) else list(document)
    copied[place[0]] = put(document[place[0]], place[1:], value)
    return copied


@pytest.mark.parametrize(
    ("document", "settings"),
    [
        (table("epd", "00017-cifar10"), Settings()),
        (table("epd", "flux-best"), Settings()),
        (table("dyweight", "00036-mscoco"), Settings()),
        (table("adasde", "cifar10-3-3"), Settings()),
        ({"timedeltas": [0.5, 0.5], "coeffs": [[0.0, 0.0], [-1.0, 0.0]]}, Settings(model="sit")),
        ({"sigmas": [3.0, 2.0, 1.0]}, Settings(model="sd15", solver="dpmpp", order=2)),
        ([0, 3, 9], Settings(nodes=9)),
    ],
    ids=["epd", "flux", "dyweight", "adasde", "dss", "levels", "indices"],
)
def test_damaged_documents_are_read_or_refused_and_never_crash(
    document: Any, settings: Settings, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    everywhere = places(document)
    read = refused = 0
    for _ in range(150):
        place = everywhere[random.integers(len(everywhere))]
        path = write(tmp_path, put(document, place, JUNK[random.integers(len(JUNK))]))
        try:
            assert import_solver(path, settings).program.B.isfinite().all()
            read += 1
        except (ValueError, TypeError) as error:
            assert explain(error) is not None and "\n" not in str(error), (place, error)
            refused += 1
    assert refused > 20 and read + refused == 150


def test_the_script_writes_a_solver_and_tells_what_to_know(tmp_path: Path) -> None:
    path = write(tmp_path, table("adasde", "cifar10-4-5"))
    script = [sys.executable, "scripts/import_coefficients.py", str(path), "--out", str(tmp_path / "solver.json")]
    done = subprocess.run(
        script, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert "as epd\nnfe 5, depth 5\n" in done.stdout
    assert "deterministic part" in done.stderr
    assert load_solver(tmp_path / "solver.json").nfe == 5


def test_the_script_tells_a_mistake_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {"nothing": "here"})
    with pytest.raises(SystemExit) as exit_code:
        main([str(path), "--out", str(tmp_path / "solver.json"), "--grid", "3,2,1"])
    told = capsys.readouterr().err
    assert exit_code.value.code == 2 and told.startswith("error: file ") and told.count("\n") == 1
    assert not (tmp_path / "solver.json").exists()
