"""Cards of published checkpoints: where a file comes from, how large it is, who may use it, and what lies in it.

A card is an entry of `cards.yaml`. Its `config` belongs to the loader that reads it (for the EDM networks: class and
keyword arguments of the network, and the preconditioning).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from solverdistill.support.type_checks import check_fields


@dataclass(frozen=True)
class Card:
    """Facts about one published checkpoint.

    Args:
        name: Name of the teacher.
        url: Address of the file; None where it cannot be downloaded without a browser or a login.
        licence: Licence of the weights, by its SPDX name where it has one.
        source: Paper or page that the weights come from.
        sha256: Checksum of the file, in hexadecimal; None where nobody publishes it.
        size: Size of the file in bytes; None where it is not published.
        parameters: Number of trained numbers; None where not known.
        file: Name of the file in the cache folder; by default the end of the url.
        config: What the loader needs to build the network.
    """

    name: str
    url: str | None
    licence: str
    source: str
    sha256: str | None = None
    size: int | None = None
    parameters: int | None = None
    file: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.file:
            if not self.url:
                raise ValueError(f"card {self.name} has neither a url nor a file name")
            object.__setattr__(self, "file", self.url.rstrip("/").rpartition("/")[2])
        if "/" in self.file or "\\" in self.file or self.file in ("", ".", ".."):
            raise ValueError(f"card {self.name} has the file name {self.file!r}, which is no plain name")
        if self.sha256 is not None and (len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef")):
            raise ValueError(f"card {self.name} has the sha256 {self.sha256!r}, which is not 64 lower-case digits")

    def megabytes(self) -> str:
        """About how large the file is, in words."""
        known = self.size or (4 * self.parameters if self.parameters else None)  # float32
        return f"about {known / 1e6:,.0f} MB" if known else "of unknown size"


def parse(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Card]:
    """Make the cards of a mapping from names to facts.

    Raises:
        ValueError: a card has an unknown fact or lacks one.
    """
    known = {f.name for f in fields(Card)} - {"name"}
    cards: dict[str, Card] = {}
    for name, facts in entries.items():
        missing = {"url", "licence", "source"} - set(facts)
        if set(facts) - known or missing:
            wrong = ", ".join(sorted((set(facts) - known) | missing))
            raise ValueError(f"card {name} lacks or has facts that it must not have: {wrong}")
        cards[name] = Card(name=name, **facts)
    return cards


@cache
def cards() -> dict[str, Card]:
    """All cards of the package by name."""
    import yaml

    text = (resources.files("solverdistill") / "teachers" / "checkpoints" / "cards.yaml").read_text(encoding="utf-8")
    return parse(yaml.safe_load(text))


def card(name: str) -> Card:
    """The card of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in cards():
        raise ValueError(f"checkpoint {name!r} has no card; known: {', '.join(sorted(cards()))}")
    return cards()[name]
