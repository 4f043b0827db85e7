"""The fits by the names that configurations call them; a module is loaded when its fit is chosen."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

from solverdistill.fits.protocol import Fit

FITS = {
    "race": "race.fit.RaceFit",
    "least_squares": "least_squares.fit.LeastSquaresFit",
    "point_search": "point_search.PointSearchFit",
    "placements": "placements.PlacementFit",
    "gauss_newton": "gauss_newton.fit.GaussNewtonFit",
    "greedy": "greedy.GreedyFit",
    "gradient": "gradient.fit.GradientFit",
    "adversarial": "gradient.adversarial.AdversarialFit",
    "relaxed": "gradient.relaxed.RelaxedFit",
    "published_epd": "gradient.published_epd.PublishedEPDFit",
}


def make_fit(name: str, options: dict[str, Any]) -> Fit:
    """The settings of a fit, from those of a configuration.

    Args:
        name: What the run calls it, for messages.
        options: Its settings, with `kind` being one of `FITS`.
    Raises:
        ValueError, TypeError: the kind or a setting is unknown, or a value cannot be used.
    """
    kind = options["kind"]
    if kind not in FITS:
        raise ValueError(f"fit.{name}.kind {kind!r} is unknown; known: {', '.join(FITS)}")
    module, _, cls = FITS[kind].rpartition(".")
    try:
        settings: Any = getattr(importlib.import_module(f"solverdistill.fits.{module}"), cls)
    except ModuleNotFoundError as error:
        if error.name != "lightning":
            raise
        raise ValueError(f"fit={kind} needs lightning; pip install 'solverdistill[train]'") from error
    known = [field.name for field in fields(settings)]
    for option in options:
        if option not in (*known, "kind"):
            raise ValueError(f"fit.{name} has no setting {option!r}; it has: {', '.join(known)}")
    return settings(**{option: value for option, value in options.items() if option != "kind"})
