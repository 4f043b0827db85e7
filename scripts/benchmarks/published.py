"""The published recipes of LD3 and of GS, cut to a budget of evaluations.

A recipe is an experiment of the configurations. Where the whole of it costs more than the budget, references take a
third of the budget at most, in the recipe's own proportion of training to held-out samples; held-out samples are looked
at five times; and the iterations are what is left, with the moving average of the params left out where it would not
get away from the start. References count. They have the recipes' 20 steps, but of iPNDM on the grid that suits the
teacher: DPM-Solver++ on LD3's grid is 0.025 off on EMNIST, where students end at 0.017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from solverdistill.families.base import Family, Params
from solverdistill.fits.gradient.fit import GradientFit
from solverdistill.fits.protocol import FitPlan
from solverdistill.fits.report import FitReport
from solverdistill.training.config_files import find_configs
from solverdistill.training.configuration import Run
from solverdistill.training.isolation import own_randomness, quiet_lightning
from solverdistill.training.stages import fit_all
from solverdistill.training.trainer import quiet_trainer

from .exact import Bench
from .teachers import GUIDANCE

RECIPES = {"LD3's recipe": "ld3_published", "GS's recipe": "gs_published"}
VALIDATIONS = 5
CHUNK = 10  # samples that references are solved in; a divisor of the recipes' numbers
AVERAGED = 3.0  # iterations, as a multiple of the memory of the moving average, from which it is kept


def run_recipe(
    bench: Bench, recipe: str, nfe: int, seed: int, budget: int
) -> tuple[Family, Params, Sequence[FitReport], float | None]:
    """Run a recipe within a budget; gives the family, its best params, reports, and the held-out error."""
    with quiet_lightning(), own_randomness(seed):
        run = cut(Run.of(configure(bench, RECIPES[recipe], nfe, seed), bench.teacher), budget)
        plan = plan_of(run)
        standing = fit_all(plan, run.begin, run.data(run.student, "cpu", None))
    family = standing.student.family
    params = family.init(seed) if standing.params is None else standing.params
    return family, params, standing.reports, standing.rmse


def configure(bench: Bench, experiment: str, nfe: int, seed: int) -> Mapping[str, Any]:
    """The configuration of an experiment on a live teacher."""
    own = [f"solver.nfe={nfe}", f"seed={seed}", "targets.cache=null", "run_name=benchmark", "output_dir=."]
    reference = {"solver": "ipndm", "grid": bench.solve.grid, "rho": "null"}
    own += [f"targets.reference.{key}={value}" for key, value in reference.items()]
    guidance = f"guidance={GUIDANCE.get(bench.name, 1.0)}"
    with initialize_config_dir(str(find_configs()), version_base="1.3"):
        composed = compose("train", [f"experiment={experiment}", guidance, *own])
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return plain


def cut(run: Run, budget: int) -> Run:
    """A run whose references and fit take no more than a budget, and no more than it asks for itself."""
    name, fit = next(iter(run.fits.items()))
    assert isinstance(fit, GradientFit)
    targets, each = run.targets, run.targets.reference.evaluations(run.teacher.path, run.teacher.noise_range)
    wanted = targets.train_samples, targets.validation_samples
    run = replace(run, targets=replace(targets, chunk=CHUNK))
    if each * sum(wanted) + fit.expected(plan_of(run)) <= budget:
        return run
    share = min(1.0, budget / 3 / (each * sum(wanted)))
    chunk = CHUNK if share * min(wanted) >= CHUNK else 1
    train, held_out = (max(chunk, int(share * samples) // chunk * chunk) for samples in wanted)
    sizes = {"train_samples": train, "validation_samples": held_out, "chunk": chunk}
    run = replace(run, targets=replace(targets, **sizes))
    batch, validations = min(fit.batch_size, train), min(VALIDATIONS, fit.validations)
    fit, left = replace(fit, batch_size=batch, validations=validations), budget - each * (train + held_out)
    few, many = 1, fit.iterations
    while few < many:  # the most that fit in
        middle = (few + many + 1) // 2
        fits_in = replace(fit, iterations=middle).expected(plan_of(run)) <= left
        few, many = (middle, many) if fits_in else (few, middle - 1)
    ema = fit.ema if fit.ema is not None and few * (1 - fit.ema) > AVERAGED else None
    return replace(run, fits={name: replace(fit, iterations=few, ema=ema)})


def plan_of(run: Run) -> FitPlan:
    """The fits of a run, without a word on the screen."""
    return run.plan(lambda fit: quiet_trainer(fit, "cpu", False))
