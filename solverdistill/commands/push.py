"""Upload a solver file with a card to the Hugging Face hub.

solverdistill push solver.json you/my-solver
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from solverdistill.commands.entry import one_sentence


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "solverdistill push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("file", help="the solver file, or zoo:<name>")
    made.add_argument("repository", help="<user>/<name>; made where it does not exist")
    made.add_argument("--private", action="store_true", help="make it a private repository")
    made.add_argument("--license", help="licence of the solver, for the card")
    made.add_argument("--message", default="Upload a solver", help="commit message")
    made.add_argument("--dry-run", action="store_true", help="print the card and upload nothing")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Upload one, or print its card."""
    options = parser().parse_args(arguments)
    with one_sentence():
        from solverdistill.consumers import hub

        if options.dry_run:
            print(hub.model_card(options.file, options.repository, options.license), end="")
            return
        print(hub.push_solver(options.file, options.repository, options.private, options.license, options.message))


if __name__ == "__main__":
    main()
