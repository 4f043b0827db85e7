"""The fuzzer of loaders: that it runs, and that it sees what it is there to see."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISBEHAVING = """
import sys, time
from pathlib import Path
from scripts.benchmarks.fuzz_watch import watch

def load(path):
    kind = path.read_text()
    if kind == "raw":
        {}["a"]
    if kind == "slow":
        start = time.process_time()
        while time.process_time() - start < 2.2: pass
    if kind == "large":
        bytearray(300 << 20)
    if kind == "starts":
        import os; os.system("true")
    if kind == "dies":
        import os; os.abort()
    if kind == "refused":
        from solverdistill.zoo import path_of
        path_of("nothing")

kinds = ["good", "raw", "slow", "large", "refused", "starts", "dies", "good"]

def make(number):
    path = Path(sys.argv[1]) / f"{number}.txt"
    path.write_text(kinds[number])
    return path

found = watch(load, make, len(kinds))
print(dict(found.outcomes), *(text for _, text in found.failures), sep="|")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux alone shows it")
def test_it_sees_what_loaders_must_not_do(tmp_path: Path) -> None:
    done = run("-c", MISBEHAVING, str(tmp_path))
    counts, raw, slow, large, starts, dies = done.stdout.strip().split("|")
    assert ast.literal_eval(counts) == {"loaded": 2, "refused": 1, "failed": 5}
    assert raw == "KeyError: 'a'" and slow.startswith("takes 2.") and " s (" in slow
    assert large.startswith("takes 3") and " MB (" in large
    assert starts == "starts os.system" and dies.startswith("ends the process with status")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}.txt" for number in (1, 2, 3, 5, 6)]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux alone shows it")
def test_a_few_files_of_some_loaders(tmp_path: Path) -> None:
    names = ["solver", "pickle", "table", "torch", "npz", "cache", "prompts"]
    done = run("scripts/benchmarks/fuzz.py", "--count", "20", "--out", str(tmp_path / "a.md"), "--targets", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "a.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in names]
    assert all(line.split(" | ")[1] == "20" and line.split(" | ")[4] == "0" for line in lines[2:])
