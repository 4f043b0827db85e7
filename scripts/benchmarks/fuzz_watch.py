"""Runs loaders on one file after the other in a process of its own, and watches time, memory and what is started."""

from __future__ import annotations

import os
import resource
import select
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from solverdistill.support.mistakes import explain

SECONDS = 2.0  # of the processor, for one file
SILENCE = 30.0  # seconds of the clock after which a process is taken to hang
MEGABYTES = 256
CASES_PER_PROCESS = 250
STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")


@dataclass
class Found:
    """What came of the files of one target."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    slowest: float = 0.0
    most: float = 0.0


Load = Callable[[Path], object]
Make = Callable[[int], Path]


def watch(load: Load, make: Make, count: int) -> Found:
    """Load files 0 to count - 1 and gather what happened; those that fail stay where they are.

    Args:
        load: Loads a file; what it raises must be a sentence.
        make: Writes the file of a number and gives its place.
        count: How many.
    """
    found, start = Found(), 0
    while start < count:
        start = _run_process(load, make, range(start, min(start + CASES_PER_PROCESS, count)), found)
    return found


def _run_process(load: Load, make: Make, cases: range, found: Found) -> int:
    """Run some files in a forked process; gives the number of the next one."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _work(load, make, cases, writer)
        except BaseException:
            print(traceback.format_exc(), file=sys.__stderr__, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(writer)
    current, buffer = cases.start, b""
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while True:
            if not select.select([stream], [], [], SILENCE)[0]:
                os.kill(child, 9)
                found.outcomes["failed"] += 1
                found.failures.append((current, f"hangs for over {SILENCE:g} s"))
                current += 1
                break
            piece = stream.read(65536)
            if not piece:
                break
            buffer += piece
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                current = _record(line.decode(), found) + 1
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != 9 or os.WIFEXITED(status) and os.WEXITSTATUS(status):
        found.outcomes["failed"] += 1
        found.failures.append((current, f"ends the process with status {status}"))
        current += 1
    return current


def _record(line: str, found: Found) -> int:
    number, seconds, megabytes, outcome, text = line.split("\t", 4)
    found.slowest, found.most = max(found.slowest, float(seconds)), max(found.most, float(megabytes))
    found.outcomes[outcome] += 1
    if outcome == "failed":
        found.failures.append((int(number), text))
    return int(number)


def _work(load: Load, make: Make, cases: range, out: int) -> None:
    started: list[str] = []
    sys.addaudithook(lambda event, _: started.append(event) if event in STARTED else None)
    sys.__stderr__ = os.fdopen(os.dup(2), "w")  # pyright: ignore[reportConstantRedefinition]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    space = _status("VmSize") + (8 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    for number in cases:
        place = make(number)
        started.clear()
        before = _reset_peak()
        clock = time.process_time()
        outcome, text = _outcome(load, place)
        seconds, megabytes = time.process_time() - clock, (_status("VmHWM") - before) / (1 << 20)
        if started:
            outcome, text = "failed", f"starts {started[0]}"
        if seconds > SECONDS:
            outcome, text = "failed", f"takes {seconds:.1f} s ({text})"
        if megabytes > MEGABYTES:
            outcome, text = "failed", f"takes {megabytes:.0f} MB ({text})"
        if outcome != "failed":
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        flat = " ".join(text.split())[:300]
        os.write(out, f"{number}\t{seconds:.3f}\t{megabytes:.1f}\t{outcome}\t{flat}\n".encode())


def _outcome(load: Load, place: Path) -> tuple[str, str]:
    try:
        load(place)
    except MemoryError as error:
        return "failed", f"MemoryError: {error}"
    except Exception as error:
        sentence = explain(error)
        if sentence is None or "\n" in str(error) or len(sentence) > 2000:
            return "failed", f"{type(error).__name__}: {error}"
        return "refused", sentence
    return "loaded", ""


def _status(name: str) -> int:
    """A size of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def _reset_peak() -> int:
    """Forget the highest memory so far; gives the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")
