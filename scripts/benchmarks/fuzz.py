"""Damaged and hostile files for every loader: only sentences, no hang, no memory beyond bounds, and nothing is run.

    python scripts/benchmarks/fuzz.py                              # every target, 500 files each
    python scripts/benchmarks/fuzz.py --count 10000 --out fuzz.md
    python scripts/benchmarks/fuzz.py --targets torch npz --seed 7 --first 4711 --count 1

A file is made of a good one and its number, so that one that fails can be made again. It fails its loader where that
raises anything but one sentence of this package, takes over 2 s of the processor, over 256 MB more than the process
held before, starts a program or opens a connection. Linux alone can measure this.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # beside the package's own, for the files that the tests make
    sys.path[0] = str(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive the fork

from scripts.benchmarks.fuzz_changes import change  # noqa: E402
from scripts.benchmarks.fuzz_targets import TARGETS  # noqa: E402
from scripts.benchmarks.fuzz_watch import Found, watch  # noqa: E402
from solverdistill.support.files import write_atomically  # noqa: E402

TITLES = ["loader", "files", "loaded", "refused", "failed", "slowest s", "most MB"]


def run_target(name: str, arguments: argparse.Namespace, folder: Path) -> Found:
    """Run one loader on its files."""
    seeds_folder, work = folder / name / "seeds", folder / name / "files"
    seeds_folder.mkdir(parents=True)
    work.mkdir()
    target = TARGETS[name]
    seeds = target.make(seeds_folder)
    for seed in seeds:
        target.load(seed)  # what is good loads, and all that is needed is imported

    def make(number: int) -> Path:
        dice = random.Random(f"{arguments.seed}-{name}-{arguments.first + number}")
        seed = dice.choice(seeds)
        place = work / f"{arguments.first + number}{seed.suffix}"
        change(seed, place, dice)
        return place

    return watch(target.load, make, arguments.count)


def main() -> None:
    """Run what the command line asks for; exits with 1 where a file failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="NAME")
    parser.add_argument("--count", type=int, default=500, help="files of each (default: 500)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all files (default: 0)")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--keep", type=Path, help="folder for the files that fail (default: a temporary one)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, failed = [TITLES, ["---"] * len(TITLES)], 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.targets:
            start = time.monotonic()
            found = run_target(name, arguments, Path(arguments.keep or temporary))
            counts = [found.outcomes[outcome] for outcome in ("loaded", "refused", "failed")]
            rows.append([name, *map(str, (sum(counts), *counts)), f"{found.slowest:.2f}", f"{found.most:.0f}"])
            print(" | ".join(rows[-1]), f"({time.monotonic() - start:.0f} s)", flush=True)
            for number, text in found.failures[:20]:
                print(f"    file {arguments.first + number}: {text}", flush=True)
            failed += counts[2]
    if arguments.out:
        write_atomically(arguments.out, "".join(f"| {' | '.join(row)} |\n" for row in rows))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
