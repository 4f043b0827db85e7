"""The commands of `solverdistill`: the zoo of published solvers, and the Hugging Face hub.

solverdistill zoo list --model cifar10
solverdistill zoo show dyweight-cifar10-nfe5
solverdistill zoo export dyweight-cifar10-nfe5 --out solver.json
solverdistill push solver.json you/my-solver
solverdistill pull you/my-solver --out solver.json
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from solverdistill import zoo
from solverdistill.support.mistakes import say_and_exit

COLUMNS = ("name", "nfe", "depth", "guidance", "published", "model")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="solverdistill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_zoo(commands)
    push = commands.add_parser("push", help="upload a solver file with a card to the Hugging Face hub")
    push.add_argument("file", help="the solver file, or zoo:<name>")
    push.add_argument("repository", help="<user>/<name>; made where it does not exist")
    push.add_argument("--private", action="store_true", help="make it a private repository")
    push.add_argument("--license", help="licence of the solver, for the card")
    push.add_argument("--message", default="Upload a solver", help="commit message")
    push.add_argument("--dry-run", action="store_true", help="print the card and upload nothing")
    push.set_defaults(run=_push)
    pull = commands.add_parser("pull", help="download a solver file from the Hugging Face hub")
    pull.add_argument("repository", help="<user>/<name>")
    pull.add_argument("--out", default="solver.json", help="where to write it")
    pull.add_argument("--file", default="solver.json", help="name of the file in the repository")
    pull.add_argument("--revision", help="branch, tag or commit")
    pull.set_defaults(run=_pull)
    return made


def _add_zoo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inner = commands.add_parser("zoo", help="published solvers that come with the package")
    inner = inner.add_subparsers(dest="zoo_command", required=True, metavar="COMMAND")
    listing = inner.add_parser("list", help="list them")
    listing.add_argument("--model", help="those whose model's or own name contains this")
    listing.add_argument("--family", help="those of a family, for example dyweight")
    listing.add_argument("--nfe", type=int, help="those with so many evaluations at most")
    listing.set_defaults(run=_list)
    show = inner.add_parser("show", help="show the card of one")
    show.add_argument("name")
    show.set_defaults(run=_show)
    export = inner.add_parser("export", help="write one as a solver file of its own")
    export.add_argument("name")
    export.add_argument("--out", default="solver.json", help="where to write it")
    export.set_defaults(run=_export)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a mistake is told in one sentence."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `solverdistill zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        say_and_exit(error)


def _list(options: argparse.Namespace) -> None:
    rows = []
    for card in map(zoo.card, zoo.names()):
        wanted = options.model is None or options.model.lower() in f"{card.name} {card.model}".lower()
        wanted &= options.family in (None, card.family) and (options.nfe is None or card.nfe <= options.nfe)
        if wanted:
            rows.append(_row(card))
    if not rows:
        raise ValueError("no solver of the zoo is like that; `solverdistill zoo list` shows all")
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{len(rows)} solvers; nfe counts every evaluation, depth those that follow each other")


def _row(card: zoo.Card) -> tuple[str, ...]:
    guidance = "" if card.guidance is None else f"{card.guidance:g}"
    published = "; ".join(f"{result['metric']} {result['value']:g}" for result in card.results)
    return card.name, str(card.nfe), str(card.depth), guidance, published, card.model


def _show(options: argparse.Namespace) -> None:
    card = zoo.card(options.name)
    facts = {
        "name": card.name,
        "family": card.family,
        "model": card.model,
        "nfe": f"{card.nfe} evaluations, {card.depth} of them one after the other",
        "guidance": "not published or none" if card.guidance is None else f"{card.guidance:g}",
        "source": card.source,
    }
    for name, value in facts.items():
        print(f"{name:10}{value}")
    for result in card.results:
        print(f"{'published':10}{result['metric']} {result['value']:g} ({result['reference']})")
    for note in card.notes:
        print(f"{'note':10}{note}")
    print(f'\nprogram = solverdistill.load_solver("{zoo.PREFIX}{card.name}")')


def _export(options: argparse.Namespace) -> None:
    from solverdistill.support.files import write_atomically

    text = zoo.path_of(options.name).read_text(encoding="utf-8")
    print(write_atomically(options.out, text))


def _push(options: argparse.Namespace) -> None:
    from solverdistill.consumers import hub

    if options.dry_run:
        print(hub.model_card(options.file, options.repository, options.license), end="")
        return
    print(hub.push_solver(options.file, options.repository, options.private, options.license, options.message))


def _pull(options: argparse.Namespace) -> None:
    from solverdistill.consumers import hub

    print(hub.pull_solver(options.repository, options.out, options.file, options.revision))
