"""Published solvers that come with the package, as solver files with cards.

    solverdistill zoo list
    program = load_solver("zoo:dyweight-cifar10-nfe5")

The numbers are those that their authors published; `scripts/make_zoo.py` makes the files from them. Names are
`<method>-<model>-nfe<evaluations>`: nfe counts every evaluation of the network, also those that run side by side, and a
guided evaluation once. No network comes along, and no licence on one.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "zoo:"
FOLDER = Path(__file__).parent / "solvers"


@dataclass(frozen=True)
class Card:
    """What the zoo tells about a solver.

    Args:
        name: Name in the zoo.
        family: Solver family.
        model: The network it was fitted to.
        nfe: Evaluations of the network per sample.
        depth: Sequential network calls per sample.
        guidance: Guidance scale it was fitted for; None for none, or where that was not published.
        source: Repository and paper.
        results: Published results: metric, value, reference.
        notes: What else a user should know.
    """

    name: str
    family: str
    model: str
    nfe: int
    depth: int
    guidance: float | None
    source: str
    results: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def names() -> list[str]:
    """Names of all solvers of the zoo; those that differ in nfe alone follow each other."""
    return sorted((path.stem for path in FOLDER.glob("*.json")), key=_order)


def path_of(name: str) -> Path:
    """File of a solver.

    Raises:
        ValueError: there is none of that name; the message names the nearest ones.
    """
    path = FOLDER / f"{name}.json"
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"the zoo has no solver {name!r}{hint}; `solverdistill zoo list` shows all")
    return path


def resolve(path: str | os.PathLike[str]) -> Path:
    """The file that a path means, which may be `zoo:<name>`."""
    text = os.fspath(path)
    return path_of(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else Path(text)


def card(name: str) -> Card:
    """The card of a solver."""
    document = json.loads(path_of(name).read_text(encoding="utf-8"))
    provenance = document["provenance"]
    return Card(
        name=name,
        family=document["family"]["name"],
        model=provenance["teacher"]["name"],
        nfe=provenance["nfe"],
        depth=provenance["depth"],
        guidance=provenance.get("guidance"),
        source=provenance["source"],
        results=tuple(provenance["published"]),
        notes=tuple(provenance["imported"]["remarks"]),
    )


def _order(name: str) -> tuple[str, int]:
    stem, _, nfe = name.rpartition("-nfe")
    return stem, int(nfe) if nfe.isdigit() else 0
