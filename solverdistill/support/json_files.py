"""JSON of foreign files: read whatever it holds, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solverdistill.support.limits import MAX_DEPTH

LARGEST_INTEGER = 1 << 64  # in magnitude; seeds are the largest that anybody writes


def parse_json(
    text: str,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    constant: Callable[[str], Any] | None = None,
) -> Any:
    """Parse a JSON document whose numbers are finite and which can be written again.

    Args:
        text: The document.
        pairs: Makes an object of its members; None for a dict.
        constant: Gets NaN, Infinity and -Infinity; None reads them as floats.
    Raises:
        json.JSONDecodeError: the text is no JSON.
        ValueError: a number is too large, or the document nests deeper than `MAX_DEPTH` levels.
    """
    too_deep = ValueError(f"it nests deeper than {MAX_DEPTH} levels")
    try:
        document = json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_int=_integer, parse_float=_finite
        )
    except RecursionError:
        raise too_deep from None
    level, depth = [document], 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        if depth > MAX_DEPTH:
            raise too_deep
        level = [item for box in level for item in (box.values() if isinstance(box, dict) else box)]
    return document


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON, or no object.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text's encoding, too
        raise ValueError(f"{path} is not JSON that can be used: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(document).__name__}")
    return document


def _integer(digits: str) -> int:
    if len(digits) > 21 or abs(int(digits)) > LARGEST_INTEGER:
        raise ValueError(f"it holds an integer of {len(digits.lstrip('-'))} digits, which is too large")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"it holds {digits[:20]}, which is too large for a number")
    return number
