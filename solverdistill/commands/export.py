"""Write a solver.json in the form that another program reads.

    solverdistill export solver.json --diffusers scheduler                       # network: as the file says
    solverdistill export solver.json --diffusers scheduler --network PIPELINE    # folder with its scheduler config
    solverdistill export solver.json --diffusers scheduler --standalone          # and the scheduler as one module
    solverdistill export solver.json --sigmas > sigmas.txt                       # noise levels alone

The folder is read by `LearnedSolverScheduler.from_pretrained`; with --standalone, `learned_solver_scheduler.py` in it
defines that class with diffusers and torch alone. What a list of levels cannot hold is told on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from solverdistill.commands.entry import one_sentence


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "solverdistill export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("solver", help="the solver.json")
    made.add_argument("--diffusers", metavar="DIR", help="write scheduler_config.json into this folder")
    made.add_argument("--network", metavar="PATH", help="pipeline folder, scheduler folder or scheduler_config.json")
    made.add_argument("--standalone", action="store_true", help="also write the scheduler as one module")
    made.add_argument(
        "--initial-noise",
        choices=("unit", "scaled"),
        default="unit",
        help="scaled: latents are multiplied by init_noise_sigma by the pipeline or by you (exact start)",
    )
    made.add_argument("--sigmas", action="store_true", help="print sigma / alpha of every evaluation, and 0")
    made.add_argument("--flow-times", action="store_true", help="print sigma / (alpha + sigma), for flow models")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Export; what the form cannot hold is told on stderr."""
    options = parser().parse_args(arguments)
    if not (options.diffusers or options.sigmas or options.flow_times):
        parser().error("say what to write: --diffusers DIR, --sigmas or --flow-times")
    with warnings.catch_warnings(), one_sentence():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        export(options)


def export(options: argparse.Namespace) -> None:
    """Write what was asked for."""
    from solverdistill.consumers.diffusers_folder import write_scheduler
    from solverdistill.consumers.sigma_list import sigma_list, write_sigmas
    from solverdistill.programs.solver_file import read_solver

    solver = read_solver(options.solver)
    if options.sigmas or options.flow_times:
        levels, lost = sigma_list(solver.program, flow=options.flow_times)
        print(write_sigmas(levels), end="")
        if lost:
            print(f"warning: {lost}", file=sys.stderr)
    if options.diffusers:
        written = write_scheduler(solver, options.diffusers, options.network, options.standalone, options.initial_noise)
        for path in written:
            print(os.fspath(path), file=sys.stderr)


if __name__ == "__main__":
    main()
