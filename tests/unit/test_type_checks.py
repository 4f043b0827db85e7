"""Types and ranges of settings, and the folders that a refused command leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from solverdistill.support.files import check_writable, expand
from solverdistill.support.mistakes import say_and_exit
from solverdistill.support.type_checks import check_fields, check_range, check_ranges


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, "fit.", "rate", above=0, below=1)
        check_ranges(self, "fit.", "steps", least=2, most=1000)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rate": float("nan")}, "rate of Settings must be a finite number, not nan"),
        ({"rate": float("inf")}, "rate of Settings must be a finite number, not inf"),
        ({"rate": True}, "rate of Settings must be a finite number, not True"),
        ({"steps": 2.0}, "steps of Settings must be an integer, not 2.0"),
        ({"rate": 0}, "fit.rate must be above 0, not 0"),
        ({"rate": 1.0}, "fit.rate must be below 1, not 1.0"),
        ({"steps": 1}, "fit.steps must be at least 2, not 1"),
        ({"steps": 1001}, "fit.steps must be at most 1,000, not 1001"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_bound(options: dict[str, Any], sentence: str) -> None:
    assert Settings(0.5, 2).steps == 2 and Settings(steps=1000) and Settings(steps=None)
    with pytest.raises((TypeError, ValueError)) as raised:
        Settings(**options)
    assert str(raised.value) == sentence


def test_a_number_of_four_hundred_digits_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="seed must be at most 7"):
        check_range("seed", 10**400, most=7)


def test_a_home_that_nobody_has_is_told(tmp_path: Path) -> None:
    assert expand(tmp_path / "a") == tmp_path / "a"
    with pytest.raises(ValueError, match="~nosuchuser is the home folder of nobody here"):
        expand("~nosuchuser/a")


def test_a_folder_that_cannot_be_made_is_named_with_its_setting(tmp_path: Path) -> None:
    check_writable("output_dir", tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="output_dir=.*inside cannot be written to: Not a directory"):
        check_writable("output_dir", tmp_path / "file" / "inside")


def test_a_refused_command_removes_what_nobody_wrote_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/empty/.hydra", "kept/empty", "kept/full"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs" / "empty" / "train.log").touch()
    (tmp_path / "kept" / "full" / "solver.json").touch()
    with pytest.raises(SystemExit) as ended:
        say_and_exit(OSError("no"), ["runs/empty", "kept/full", str(tmp_path / "kept" / "empty"), "none", "."])
    assert ended.value.code == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "kept", "solver.json"]
