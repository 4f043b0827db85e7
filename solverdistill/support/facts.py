"""Settings that stand in a foreign file: their types are checked when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from solverdistill.support.limits import shown

LARGEST = 1e6  # of any setting: ranges, exponents, guidance


@dataclass(frozen=True)
class Facts:
    """Settings with checked types; a missing one takes the default, and without a default is refused.

    Args:
        file: What messages call the file.
        values: Settings by name.
    """

    file: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def integer(self, name: str, default: int | None = None) -> int:
        return self._get(name, (int,), "an integer", default)

    def count(self, name: str, least: int, most: int = 1000, default: int | None = None) -> int:
        """A whole number within bounds, which keep a damaged file from asking for the machine's whole memory."""
        value = self.integer(name, default)
        if not least <= value <= most:
            raise ValueError(f"file {self.file} says {name} is {shown(value)}, which is not between {least} and {most}")
        return value

    @property
    def place(self) -> str:
        """Where the file comes from: what it says itself, or its own path."""
        source = self.values.get("source")
        return source if isinstance(source, str) and source else self.file

    @property
    def guidance(self) -> float | None:
        """Guidance scale, where the solver was fitted with classifier-free guidance."""
        return self.number("guidance_rate") if self.word("guidance_type", "") == "cfg" else None

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, (int, float), "a number", default)
        if not abs(value) < LARGEST:
            raise ValueError(f"file {self.file} says {name} is {shown(value)}, which is no sensible number")
        return float(value)

    def word(self, name: str, default: str | None = None) -> str:
        return self._get(name, (str,), "a word", default)

    def flag(self, name: str, default: bool | None = None) -> bool:
        return self._get(name, (bool,), "true or false", default)

    def numbers(self, name: str, default: list[float] | None = None) -> list[float]:
        """A list of numbers."""
        values = self._get(name, (list, tuple), "a list of numbers", default)
        return [Facts(self.file, {f"{name}[{i}]": value}).number(f"{name}[{i}]") for i, value in enumerate(values)]

    def _get(self, name: str, kinds: tuple[type, ...], what: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"file {self.file} must say {name} as {what}, not {shown(value)}")
        return value
