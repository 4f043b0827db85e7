"""Published solvers that come with the package.

solverdistill zoo list --model cifar10
solverdistill zoo show dyweight-cifar10-nfe5
solverdistill zoo export dyweight-cifar10-nfe5 --out solver.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from solverdistill import zoo
from solverdistill.commands.entry import one_sentence
from solverdistill.support.files import write_atomically

COLUMNS = ("name", "nfe", "depth", "guidance", "published", "model")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "solverdistill zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    inner = made.add_subparsers(dest="zoo_command", required=True, metavar="COMMAND")
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
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """List them, or show or export one."""
    options = parser().parse_args(arguments)
    with one_sentence():
        options.run(options)


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
    text = zoo.path_of(options.name).read_text(encoding="utf-8")
    print(write_atomically(options.out, text))


if __name__ == "__main__":
    main()
