"""The cache on disk: whole shards or none, shared by processes, mended where it is damaged."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from solverdistill import distill
from solverdistill.families import build
from solverdistill.noise.grids import Grid
from solverdistill.references.serving import TargetData
from solverdistill.references.shard_cache import ShardCache
from solverdistill.references.solving import Reference
from solverdistill.references.targets import TargetSettings
from solverdistill.support.files import STALE_AFTER, claim, default_root
from solverdistill.teachers.mixture import toy_mixture

ROOT = Path(__file__).parents[2]


class Maker:
    """Makes x = global sample index, and remembers which shards it was asked for."""

    def __init__(self, samples: int = 4) -> None:
        self.samples, self.made = samples, []

    def __call__(self, shard: int) -> dict[str, Tensor]:
        self.made.append(shard)
        first = shard * self.samples
        x = torch.arange(first, first + self.samples, dtype=torch.float32)[:, None].repeat(1, 3)
        return {"x": x, "label": torch.arange(first, first + self.samples)}


def make_cache(root: Path, **facts: int) -> ShardCache:
    return ShardCache(root, "a name/train", {"seed": 0, **facts}, samples=4)


def test_a_longer_run_extends_the_cache_of_a_shorter_one(tmp_path: Path) -> None:
    cache, maker, reports = make_cache(tmp_path), Maker(), []
    assert cache.fill(range(2), maker) == []
    assert make_cache(tmp_path).fill(range(4), maker, reports.append) == [0, 1]
    assert maker.made == [0, 1, 2, 3]
    assert reports == [1, 2, 2, 2, 3, 4]
    assert torch.equal(cache.read(3)["label"], torch.arange(12, 16))
    assert sorted(path.name for path in cache.folder.iterdir()) == [
        "manifest.json",
        *(f"shard-{shard:08d}.safetensors" for shard in range(4)),
    ]


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.fill(range(3), Maker())
    index = torch.tensor([9, 0, 3, 4, 9])
    rows = cache.take(index, ("x", "label"))
    assert torch.equal(rows["label"], index)
    assert torch.equal(rows["x"], index[:, None].float().repeat(1, 3))


def test_other_facts_are_another_folder(tmp_path: Path) -> None:
    assert make_cache(tmp_path).folder == make_cache(tmp_path).folder
    assert make_cache(tmp_path, seed=1).folder != make_cache(tmp_path).folder
    assert make_cache(tmp_path).folder.name.startswith("a-name-train-")


def test_the_manifest_says_what_lies_there(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.fill(range(2), Maker())
    manifest = json.loads((cache.folder / "manifest.json").read_text())
    assert manifest["seed"] == 0 and manifest["samples_per_shard"] == 4
    assert sorted(manifest["shards"]) == ["00000000", "00000001"]
    assert cache.size() == sum(cache.path(shard).stat().st_size for shard in range(2))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_shard_is_made_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, maker = make_cache(tmp_path), Maker()
    cache.fill(range(3), maker)
    path = cache.path(1)
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[:-5])
    elif damage == "flipped":
        path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert cache.fill(range(3), maker) == [0, 2]
    assert maker.made == [0, 1, 2, 1]
    assert path.read_bytes() == whole
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (0 if damage == "missing" else 1)
    assert all("shard-00000001" in message and "made again" in message for message in messages)


@pytest.mark.parametrize("content", ["", "{}", '{"shards": 3}', '{"shards": {'])
def test_a_damaged_manifest_is_made_again(content: str, tmp_path: Path) -> None:
    cache, maker = make_cache(tmp_path), Maker()
    cache.fill(range(2), maker)
    (cache.folder / "manifest.json").write_text(content)
    assert cache.fill(range(2), maker) == []
    assert cache.fill(range(2), maker) == [0, 1]


def test_a_run_that_fails_leaves_whole_shards_alone(tmp_path: Path) -> None:
    cache, maker = make_cache(tmp_path), Maker()

    def failing(shard: int) -> dict[str, Tensor]:
        if shard == 2:
            raise RuntimeError("out of memory")
        return maker(shard)

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.fill(range(4), failing)
    assert {path.suffix for path in cache.folder.iterdir()} == {".json", ".safetensors"}
    assert cache.fill(range(4), maker) == [0, 1]
    assert maker.made == [0, 1, 2, 3]


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    code = f"""
import os, sys, time, torch
from pathlib import Path
from solverdistill.references.shard_cache import ShardCache

def make(shard):
    (Path({str(tmp_path)!r}) / f"{{shard}}-{{os.getpid()}}").touch()
    time.sleep(0.1)
    return {{"x": torch.full((4,), float(shard))}}

cache = ShardCache(Path({str(tmp_path)!r}) / "cache", "name", {{}}, 4)
print("ready", flush=True)
sys.stdin.readline()
cache.fill(range(12), make)
assert all(bool((cache.read(shard)["x"] == shard).all()) for shard in range(12))
"""
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
    assert [worker.returncode for worker in workers] == [0, 0]
    made = [path.name.split("-") for path in tmp_path.iterdir() if path.is_file()]
    assert sorted(int(shard) for shard, _ in made) == list(range(12))
    assert len({pid for _, pid in made}) == 2
    cache = ShardCache(tmp_path / "cache", "name", {}, 4)
    assert cache.fill(range(12), Maker()) == list(range(12))


def test_a_lock_is_respected_while_its_owner_lives(tmp_path: Path) -> None:
    path = tmp_path / "shard.lock"
    with claim(path) as first, claim(path) as second:
        assert first and not second
    assert not path.exists()
    with claim(path) as again:
        assert again


def test_the_lock_of_a_dead_process_is_broken(tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", ""])
    worker.wait()
    path = tmp_path / "shard.lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": worker.pid}))
    with claim(path) as claimed:
        assert claimed


@pytest.mark.parametrize("content", ['{"host": "elsewhere", "pid": 1}', ""])
def test_the_lock_of_another_machine_is_broken_when_old(content: str, tmp_path: Path) -> None:
    path = tmp_path / "shard.lock"
    path.write_text(content)
    with claim(path) as claimed:
        assert not claimed
    os.utime(path, (0, time.time() - STALE_AFTER - 1))
    with claim(path) as claimed:
        assert claimed


def test_left_over_temporary_files_go_when_old(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    cache.fill(range(1), Maker())
    old, new = (cache.folder / f".shard-00000000.safetensors.host.{pid}" for pid in (1, 2))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, time.time() - STALE_AFTER - 1))
    cache.fill(range(1), Maker())
    assert not old.exists() and new.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written .* set targets.cache to another folder or to null"):
        make_cache(tmp_path / "file").fill(range(1), Maker())


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path))
    assert default_root() == tmp_path / "targets"
    monkeypatch.delenv("SOLVERDISTILL_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "solverdistill" / "targets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache" / "solverdistill" / "targets"


# ------------------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"]
    if not Path("/bin/mount").exists() or subprocess.run(["mount", *options, folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process gets larger, as under a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Large(Maker):
    """Shards of 20 kB."""

    def __call__(self, shard: int) -> dict[str, Tensor]:
        rows = super().__call__(shard)
        return {**rows, "x": rows["x"][:, :1].repeat(1, 1250)}


def test_a_disk_without_room_is_refused_before_the_work_begins(small_disk: Path) -> None:
    cache, maker = make_cache(small_disk), Large()
    sentence = r"cannot be written \(no room for what is missing: 80 kB needed, \d+\.\d kB left\); set"
    with pytest.raises(ValueError, match=f"the cache {cache.folder} {sentence}"):
        cache.fill(range(4), maker, each=20_000)
    assert maker.made == []
    assert cache.fill(range(2), maker, each=20_000) == [] and maker.made == [0, 1]
    assert cache.fill(range(2), maker, each=20_000) == [0, 1]  # what is there needs no room


def test_a_run_looks_for_room_for_all_of_its_splits(small_disk: Path) -> None:
    # Chunks of 64 samples of 6 numbers on 7 points take 23 kB: two of them fit, and a third one does not.
    targets = {
        "reference": {"solver": "euler", "steps": 6, "grid": "polynomial"},
        "train_samples": 128,
        "validation_samples": 64,
    }
    with pytest.raises(ValueError, match=r"\(no room for what is missing: 69.1 kB needed, 65.5 kB left\)"):
        distill(toy_mixture(), "gas", fit="gauss_newton", targets={**targets, "cache": str(small_disk)}, device="cpu")
    assert not list(small_disk.rglob("shard-*"))
    settings = TargetSettings(Reference("euler", 6), 128, 64, cache=str(small_disk))
    data = TargetData(settings, toy_mixture(), toy_mixture(), build("gas", Grid(steps=3), "edm"))
    assert len(data.split("train")) == 128
    data.look_for_room("train")
    with pytest.raises(ValueError, match=r"23 kB needed, 1\d.* kB left\)"):  # what is there needs no room
        data.look_for_room("train", "validation")


def test_a_disk_that_runs_full_keeps_whole_shards_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    cache, maker = make_cache(small_disk), Large()
    other = small_disk / "of somebody else"
    other.write_bytes(bytes(20_000))
    with pytest.raises(ValueError, match=r"cannot be written \(No space left on device: 20 kB needed, .* left\); set"):
        cache.fill(range(4), maker)
    whole = len(maker.made) - 1  # the last one that was made found no room
    assert whole >= 1 and not list(cache.folder.glob(".shard-*")) and not list(cache.folder.glob("*.lock"))
    other.unlink()
    assert cache.fill(range(whole + 1), maker) == list(range(whole))
    assert torch.equal(cache.read(whole)["label"], Large()(whole)["label"])


def test_a_quota_is_one_sentence_too(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    with (
        largest_file(10_000),
        pytest.raises(ValueError, match=r"\(File too large: 20 kB needed, [\d.]+ .B left\); set"),
    ):
        cache.fill(range(2), Large())
    assert not list(cache.folder.glob("*shard*"))
    assert cache.fill(range(2), Large()) == []
