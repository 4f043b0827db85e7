"""Every pipeline of diffusers that tiny random components are there for: how exactly it plays a solver.

A column is a function from a `Tiny` to text, so that what else there is to say of a pipeline is one more of them.
"""

from __future__ import annotations

import argparse
import inspect
import re
import warnings
from collections.abc import Callable

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging

from solverdistill.consumers.diffusers_config import find_network
from solverdistill.support.files import write_atomically

from .machine import command, describe
from .teaching import TOLERANCE, teaches
from .tiny.making import Tiny
from .tiny.pipelines import TINY
from .tiny.playing import ChangedBetweenStepsError, against_own, against_sample

TEACHES = "teaches"
HELD = "it changes the state between steps"
NUMBER = "its own scheduler"
NUMERAL = r"[0-9.]+e[-+][0-9]+"


def run(arguments: argparse.Namespace) -> None:
    """Measure and write the page."""
    warnings.simplefilter("ignore")
    diffusers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = [name for name in TINY if not arguments.only or any(part in name for part in arguments.only)]
    rows = []
    for name in names:
        rows.append({**measure(name, TINY[name]()), TEACHES: teaches(TINY[name]).cell})
        print(" | ".join(rows[-1].values()), flush=True)
    write_atomically(arguments.out, page(rows))


def prediction(made: Tiny) -> str:
    """What the network predicts."""
    return find_network(made.pipe, None).prediction.replace("_prediction", "")


def scheduler(made: Tiny) -> str:
    """The scheduler that came with the pipeline."""
    return type(made.pipe.scheduler).__name__.removesuffix("Scheduler")


def own(made: Tiny) -> str:
    """Error against the pipeline's own scheduler."""
    return f"{against_own(made):.0e}"


def definition(made: Tiny) -> str:
    """Error against `sample`, of the worse of two tables."""
    try:
        return f"{max(against_sample(made, 'epd', 2), against_sample(made, 'unipc', 4)):.0e}"
    except ChangedBetweenStepsError:
        return HELD


COLUMNS: dict[str, Callable[[Tiny], str]] = {
    "scheduler": scheduler,
    "predicts": prediction,
    NUMBER: own,
    "`sample`": definition,
}


def measure(name: str, made: Tiny) -> dict[str, str]:
    """The row of a pipeline; of one that is refused, the sentence stands in place of the first number."""
    row = {"pipeline": name}
    for title, column in COLUMNS.items():
        try:
            row[title] = column(made)
        except ValueError as error:
            return row | dict.fromkeys([key for key in COLUMNS if key not in row], "") | {NUMBER: f"refused: {error}"}
    return row


def page(rows: list[dict[str, str]]) -> str:
    """The Markdown page."""
    played = [row for row in rows if not row[NUMBER].startswith("refused")]
    taught = [row for row in rows if re.fullmatch(NUMERAL, row[TEACHES]) and float(row[TEACHES]) <= TOLERANCE]
    titles = ["pipeline", *COLUMNS, TEACHES]
    table = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    table += ["| " + " | ".join(row[title] for title in titles) + " |" for row in rows]
    others = sorted(untried())
    return TEMPLATE.format(
        version=diffusers.__version__,
        tried=len(rows),
        played=len(played),
        refused=len(rows) - len(played),
        taught=len(taught),
        table="\n".join(table),
        command=command(),
        machine=describe(torch.device("cpu")),
        count=len(others),
        others=", ".join(f"`{name}`" for name in others),
    )


def untried() -> set[str]:
    """Pipelines of the installed diffusers that no tiny components are there for."""
    tried = {type_name.split(",")[0] for type_name in TINY}
    names = {name for name in dir(diffusers) if name.endswith("Pipeline") and name not in tried}
    return {name for name in names if _is_pipeline(getattr(diffusers, name))}


def _is_pipeline(kind: object) -> bool:
    usable = inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)
    return usable and "num_inference_steps" in inspect.signature(kind.__call__).parameters


TEMPLATE = """# Pipelines of diffusers, one by one

Tried with diffusers {version} and tiny networks of random weights, none of the pipelines changed: {tried} set-ups, of
which {played} play a solver and {refused} are refused with the sentence in the table; {taught} teach one. Errors are
the largest difference over the largest value of the latents, in single precision.

* **its own scheduler**: the scheduler that came with the pipeline makes four steps, at first order where it has an
  order; the table of Euler's method on the very levels that it took is then played by `LearnedSolverScheduler`. So the
  times that the network is told, signs, shifts, the start and what the pipeline does to its latents are its own.
* **`sample`**: a table with two points per stage (EPD) and one with memory (UniPC) against `solverdistill.sample`,
  which asks the same pipeline for its guided network; the worse of both.
* **teaches**: `solverdistill.teachers.from_pipeline` makes a teacher of it. When it does, four steps of the pipeline's
  own sampling are made, and each gives the same output when it is asked for alone; the first is the Euler step that
  follows from the denoised image (flow matching and DDIM). The number is the error of the teacher's gradient along a
  random direction, against central differences in double precision, or in single precision where the pipeline's own
  code has no other; above 1e-3 it does not count. A sentence says why there is no teacher.

{table}

- Command: `{command}`
- Machine: {machine}

What the numbers do not show:

* A scheduler that clips its denoised images (`clip_sample`, `thresholding`) is taken without: a solver was fitted to
  the network and not to the clipping, and plays as it was fitted.
* HiDream chooses its experts without a gradient (`torch.no_grad`), so its gradient lacks their part. Kandinsky's rounds
  to bfloat16 inside, so that differences of it are no better than that.
* UniPC and DPM-Solver tell a flow network integers; a solver tells it the times that it was fitted with. The pipeline
  of diffusion forcing rounds them itself, for every scheduler.

The following {count} pipelines of this version run a scheduler too and were not tried: {others}.
"""
