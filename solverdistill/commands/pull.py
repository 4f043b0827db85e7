"""Download a solver file from the Hugging Face hub.

solverdistill pull you/my-solver --out solver.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from solverdistill.commands.entry import one_sentence


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "solverdistill pull", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("repository", help="<user>/<name>")
    made.add_argument("--out", default="solver.json", help="where to write it")
    made.add_argument("--file", default="solver.json", help="name of the file in the repository")
    made.add_argument("--revision", help="branch, tag or commit")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Download one."""
    options = parser().parse_args(arguments)
    with one_sentence():
        from solverdistill.consumers import hub

        print(hub.pull_solver(options.repository, options.out, options.file, options.revision))


if __name__ == "__main__":
    main()
