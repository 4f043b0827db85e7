"""Turn a published coefficient file of another project, or a scheduler of diffusers, into a solver file.

    solverdistill import network-snapshot-000010.pkl --model cifar10 --out solver.json
    solverdistill import best_v2.pt --solver ipndm --order 3 --out solver.json
    solverdistill import ns_sampling.py --steps 8 --model flowdcn --out solver.json
    solverdistill import sigmas.txt --solver dpmpp --order 2 --model sd15 --out solver.json
    solverdistill import --scheduler DPMSolverMultistepScheduler --steps 20 --config folder --out solver.json

Reads EPD, AdaSDE (its deterministic part), AMED (mean coefficients), DyWeight, GAS, LD3, NeuralSolver (DSS), and lists
of steps as AYS, OSS and GITS publish them; what a file is, is told by its content. Nothing in it is executed. A
scheduler is run on one-hot vectors, and what is no table (it draws noise, clips) is refused. What a user should know
about the result is printed and stored in the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solverdistill.commands.entry import one_sentence

if TYPE_CHECKING:
    from solverdistill.importers import Imported, Settings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "solverdistill import", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("file", nargs="?", help="the published file")
    made.add_argument("--out", required=True, help="where to write the solver file")
    made.add_argument("--model", help="the model it belongs to, for example cifar10 or sd15; a wrong name lists all")
    made.add_argument("--grid", help="noise levels in place of the published schedule, separated by commas")
    made.add_argument("--steps", type=int, help="which table of a file with several; or the steps of a scheduler")
    made.add_argument("--solver", help="classical solver of a list of steps, or the one under LD3's times")
    made.add_argument("--order", type=int, help="its order")
    made.add_argument("--variant", choices=("bh1", "bh2"), help="of unipc")
    made.add_argument("--predict-noise", action="store_true", help="dpmpp and unipc extrapolate the noise")
    made.add_argument("--nodes", type=int, help="steps of the teacher, for a list of indices (OSS)")
    made.add_argument("--mu", type=float, help="logarithm of the time shift of a flow model at your resolution")
    made.add_argument("--scheduler", help="in place of a file, a scheduler class of diffusers")
    made.add_argument("--config", help="its configuration: a folder of a pipeline or scheduler, or the JSON file")
    made.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the scheduler in place of the configuration's, such as use_karras_sigmas=true; repeatable",
    )
    made.add_argument("--features", help=".npy of bottleneck features (steps, samples, 64) to average AMED over")
    return made


def settings_of(options: argparse.Namespace) -> Settings:
    """Settings that the command line gives."""
    from solverdistill.importers import Settings

    features = None
    if options.features:
        import torch

        from solverdistill.support.arrays import read_npy

        features = torch.from_numpy(read_npy(options.features).astype("f8"))
    return Settings(
        model=options.model,
        grid=None if options.grid is None else levels_of(options.grid),
        steps=options.steps,
        solver=options.solver,
        order=options.order,
        variant=options.variant,
        predict_x0=False if options.predict_noise else None,
        nodes=options.nodes,
        mu=options.mu,
        features=features,
    )


def import_scheduler(options: argparse.Namespace) -> Imported:
    """The table of a scheduler."""
    from solverdistill.importers import probe
    from solverdistill.importers.probed_schedulers import load_scheduler

    if options.steps is None:
        raise ValueError("a scheduler needs --steps")
    scheduler = load_scheduler(options.scheduler, options.config, dict(map(_setting, options.option)))
    shift = {} if options.mu is None else {"mu": options.mu}
    name = options.model or (Path(options.config).absolute().name if options.config else None)
    return probe(scheduler, options.steps, options=shift, name=name)


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value being JSON or a word."""
    name, given, value = text.partition("=")
    if not given:
        raise ValueError(f"--option {text} has no value; write it as {text}=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def levels_of(text: str) -> list[float]:
    """Noise levels that the command line lists.

    Raises:
        ValueError: one is no number.
    """
    try:
        return [float(level) for level in text.split(",")]
    except ValueError:
        raise ValueError(f"--grid takes noise levels separated by commas, as 80,1.5,0.002, not {text!r}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Import one file or scheduler; a mistake is told in one sentence."""
    options = parser().parse_args(arguments)
    with one_sentence():
        from solverdistill.importers import import_solver

        probed = bool(options.scheduler or options.config or options.option)
        if probed == bool(options.file):
            raise ValueError("import takes a file, or --scheduler and --config, and not both")
        found = import_scheduler(options) if probed else import_solver(options.file, settings_of(options))
        written = found.save(Path(options.out))
        name = "no family" if found.family is None else found.family.name
        teacher = found.provenance.get("teacher", {}).get("name", "a model that the file does not name")
        print(f"{written}: {found.provenance['imported']['format']} for {teacher}, as {name}")
        print(f"nfe {found.program.nfe}, depth {found.program.depth}")
        for remark in found.remarks:
            print(f"note: {remark}", file=sys.stderr)


if __name__ == "__main__":
    main()
