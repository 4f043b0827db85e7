"""The fits that the fit benchmark compares: overrides of the configuration, and how long each may run."""

from __future__ import annotations

from dataclasses import dataclass

LONG = 5  # budget of a paper's own recipe, as a multiple of that of the others


@dataclass(frozen=True)
class Recipe:
    """A way to fit a student.

    Args:
        title: What it is, for tables.
        overrides: Overrides of the configuration.
        long: Whether it runs for `LONG` times the budget.
        once: Whether it runs with the first seed alone.
        solvers: Students that have it; empty for all.
    """

    title: str
    overrides: tuple[str, ...]
    long: bool = False
    once: bool = False
    solvers: tuple[str, ...] = ()


RACED = "fit=[race,gauss_newton]"
GS = ("optimizer.lr=0.001", "optimizer.lr_of=null", "optimizer.cosine=false", "objective.distance=l1")
GS_FIT = ("fit.gradient.batch_size=24", "fit.gradient.ema=0.999", "fit.gradient.gradient_clip=1.0")
GS_RANGE = ("+solver.grid.start=0.9335", "+solver.grid.end=0.001")  # sigma / alpha = 80, as in gs_published
EPD = ("objective=published_epd", "optimizer.lr=0.2", "optimizer.final_lr=0.01")
EPD_FIT = ("fit=published_epd", "fit.published_epd.batch_size=32")
GRID = ("solver.grid.kind=time_uniform", "solver.grid.rho=1.0")
EPD_START = ("solver.init_from=drawn", "solver.learn_times=false", *GRID)
GS_START = ("solver.init_from=paper", "solver.path=vp", *GRID, *GS_RANGE)
SOME = ("corrected", "gas")  # rows of EPD are not linear in its params: its points are searched
CHOICE = "fit.gauss_newton.jacobian"

RECIPES: dict[str, Recipe] = {
    "paper_gs": Recipe("the paper's gradient recipe", ("fit=gradient", *GS_FIT, *GS, *GS_START), True, True, ("gas",)),
    "paper_epd": Recipe("the paper's gradient recipe", (*EPD_FIT, *EPD, *EPD_START), True, True, ("epd",)),
    "adam": Recipe("Adam, cosine", ("fit=gradient",)),
    "race_adam": Recipe("race, Adam", ("fit=[race,gradient]",), once=True),
    "least_squares": Recipe("race, least squares", ("fit=[race,least_squares]",), once=True, solvers=SOME),
    "point_search": Recipe("race, point search", ("fit=[race,point_search]",), once=True, solvers=("epd",)),
    "exact": Recipe("Levenberg-Marquardt (exact)", ("fit=gauss_newton", f"{CHOICE}=exact"), once=True),
    "sketched": Recipe("Gauss-Newton (sketched)", ("fit=gauss_newton",)),
    "default": Recipe("race, Gauss-Newton", (RACED,)),
    "default_adam": Recipe("race, Gauss-Newton, Adam", ("fit=[race,gauss_newton,gradient]",), once=True),
}


def recipes_of(solver: str) -> dict[str, Recipe]:
    """The recipes that a student has."""
    return {name: recipe for name, recipe in RECIPES.items() if not recipe.solvers or solver in recipe.solvers}
