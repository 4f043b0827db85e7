"""Write a solver.json in the form that another program reads.

    python scripts/export.py solver.json --diffusers scheduler                       # network: as the file says
    python scripts/export.py solver.json --diffusers scheduler --network PIPELINE    # folder with its scheduler config
    python scripts/export.py solver.json --diffusers scheduler --standalone          # and the scheduler as one module
    python scripts/export.py solver.json --sigmas > sigmas.txt                       # noise levels alone

The folder is read by `LearnedSolverScheduler.from_pretrained`; with --standalone, `learned_solver_scheduler.py` in it
defines that class with diffusers and torch alone. What a list of levels cannot hold is told on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings


def main(arguments: list[str] | None = None) -> None:
    """Export; a mistake is told in one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("solver", help="the solver.json")
    parser.add_argument("--diffusers", metavar="DIR", help="write scheduler_config.json into this folder")
    parser.add_argument("--network", metavar="PATH", help="pipeline folder, scheduler folder or scheduler_config.json")
    parser.add_argument("--standalone", action="store_true", help="also write the scheduler as one module")
    parser.add_argument(
        "--initial-noise",
        choices=("unit", "scaled"),
        default="unit",
        help="scaled: latents are multiplied by init_noise_sigma by the pipeline or by you (exact start)",
    )
    parser.add_argument("--sigmas", action="store_true", help="print sigma / alpha of every evaluation, and 0")
    parser.add_argument("--flow-times", action="store_true", help="print sigma / (alpha + sigma), for flow models")
    options = parser.parse_args(arguments)
    if not (options.diffusers or options.sigmas or options.flow_times):
        parser.error("say what to write: --diffusers DIR, --sigmas or --flow-times")
    from solverdistill.support.mistakes import say_and_exit

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            export(options)
        except Exception as error:
            say_and_exit(error)


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
