"""Benchmarks of the package; each is a sub-command.

    python scripts/benchmark.py overhead                       # what the executor adds to the network calls
    python scripts/benchmark.py overhead --device cuda --out overhead-cuda.md
    python scripts/benchmark.py families --nfe 4 6 8           # every student, trained with the same budget
    python scripts/benchmark.py fits                           # every fit on the same students
    python scripts/benchmark.py families --nfe 6 --solvers gas ld3 --jobs 2 --set optimizer.lr=0.01 --out trial.md
    python scripts/benchmark.py parallel --depth 2 3 5         # points beside a sequential solver, against epd
    python scripts/benchmark.py pipelines                      # which pipelines of diffusers play a solver, how exactly
    python scripts/benchmark.py scheduler-tests CHECKOUT       # diffusers' own tests of schedulers, on ours
    python scripts/benchmark.py samplers --comfyui ../ComfyUI  # other people's samplers against their tables

`families`, `fits` and `parallel` go on where they were when started again with the same settings: what is done stands
in a file beside their report.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def overhead(arguments: argparse.Namespace) -> None:
    """What the executor adds to the network calls."""
    from benchmarks.overhead import run

    run(arguments)


def families(arguments: argparse.Namespace) -> None:
    """Every student, trained with the same budget."""
    from benchmarks.families import run

    run(arguments)


def fits(arguments: argparse.Namespace) -> None:
    """Every fit on the same students."""
    from benchmarks.fits import run

    run(arguments)


def parallel(arguments: argparse.Namespace) -> None:
    """Points beside a sequential solver."""
    from benchmarks.parallel import run

    run(arguments)


def pipelines(arguments: argparse.Namespace) -> None:
    """Which pipelines of diffusers play a solver, and how exactly."""
    from benchmarks.pipelines import run

    run(arguments)


def scheduler_tests(arguments: argparse.Namespace) -> None:
    """diffusers' own tests of schedulers, on ours."""
    from benchmarks.scheduler_tests import run

    run(arguments)


def samplers(arguments: argparse.Namespace) -> None:
    """Other people's samplers as tables."""
    from benchmarks.samplers import run

    run(arguments)


def student(arguments: argparse.Namespace) -> None:
    """One line of `families`, which runs each in a process of its own."""
    from benchmarks.student import run

    run(arguments.job, arguments.result)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_overhead(commands.add_parser("overhead", help="time of the executor relative to the network calls it makes"))
    _add_families(commands.add_parser("families", help="error of every student after the same number of evaluations"))
    _add_fits(commands.add_parser("fits", help="error of every fit against evaluations and seconds"))
    _add_parallel(commands.add_parser("parallel", help="parallel, its sequential start and epd at the same depth"))
    _add_pipelines(commands.add_parser("pipelines", help="how exactly the pipelines of diffusers play a solver"))
    tests = commands.add_parser("scheduler-tests", help="the common tests of diffusers' schedulers, on ours")
    tests.add_argument("checkout", type=Path, help="folder of the repository of diffusers")
    tests.set_defaults(run=scheduler_tests)
    _add_samplers(commands.add_parser("samplers", help="schedulers of diffusers and samplers of ComfyUI as tables"))
    one = commands.add_parser("student", help="one student of `families`, in the process that it is given")
    one.add_argument("job", help="what to do, as JSON")
    one.add_argument("result", type=Path, help="file for the result, as JSON")
    one.set_defaults(run=student)
    return parser.parse_args(argv)


def _add_overhead(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU (default: as torch chooses)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="batch sizes (default: 1 64)")
    parser.add_argument("--repeats", type=int, default=50, help="runs of each solver (default: 50)")
    parser.add_argument("--network-repeats", type=int, default=3, help="runs of the network (default: 3)")
    parser.add_argument("--out", help="write the result to this Markdown file")
    parser.set_defaults(run=overhead)


def _add_families(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nfe", type=_positive, nargs="+", default=[4, 6, 8], help="evaluations per sample (default: 4 6 8)"
    )
    parser.add_argument("--solvers", nargs="+", help="students (default: all of configs/solver)")
    parser.add_argument("--model", default="edm_digits", help="teacher, of configs/model (default: edm_digits)")
    parser.add_argument(
        "--evaluations", type=_positive, default=60000, help="images that the network sees forward in training (60000)"
    )
    parser.add_argument(
        "--test-samples", type=_positive, default=512, help="held-out samples to compare on (default: 512)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the students (default: 0)")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes at a time, one thread each (default: 1)")
    parser.add_argument("--fresh", action="store_true", help="forget what a former run has finished")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every configuration")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/families.md"), help="Markdown file; csv and png lie beside it"
    )
    parser.set_defaults(run=families)


def _add_fits(parser: argparse.ArgumentParser) -> None:
    nfe = {"type": _positive, "nargs": "+"}
    parser.add_argument("--solvers", nargs="+", default=["corrected", "gas", "epd"], help="students")
    parser.add_argument("--nfe", **nfe, default=[4, 6, 8], help="evaluations per sample (default: 4 6 8)")
    parser.add_argument("--nfe-epd", **nfe, default=[5, 8], help="those of epd, which has not all (default: 5 8)")
    parser.add_argument("--recipes", nargs="+", help="fits, of scripts/benchmarks/recipes.py (default: all)")
    parser.add_argument("--model", default="edm_digits", help="teacher, of configs/model (default: edm_digits)")
    parser.add_argument("--evaluations", type=_positive, default=40000, help="budget of a fit (default: 40000)")
    parser.add_argument("--test-samples", type=_positive, default=512, help="samples to compare on (default: 512)")
    parser.add_argument("--seeds", type=_positive, default=3, help="seeds of each fit (default: 3)")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes at a time, one thread each (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, one run after the other (default: cpu)")
    parser.add_argument("--fresh", action="store_true", help="forget what a former run has finished")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every configuration")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/fits.md"), help="Markdown file; json and png lie beside it"
    )
    parser.set_defaults(run=fits)


def _add_parallel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depth", type=_positive, nargs="+", default=[2, 3, 5], help="depths (default: 2 3 5)")
    parser.add_argument("--points", type=_positive, nargs="+", default=[2, 3], help="points per stage (default: 2 3)")
    parser.add_argument("--model", default="edm_digits", help="teacher, of configs/model (default: edm_digits)")
    parser.add_argument("--test-samples", type=_positive, default=512, help="samples to compare on (default: 512)")
    parser.add_argument("--seeds", type=_positive, default=1, help="seeds of each student (default: 1)")
    parser.add_argument("--fresh", action="store_true", help="forget what a former run has finished")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every configuration")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/benchmarks/parallel.md"), help="Markdown file; json lies beside it"
    )
    parser.set_defaults(run=parallel)


def _add_pipelines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of pipelines (default: all)")
    parser.add_argument("--out", type=Path, default=Path("docs/pipelines.md"), help="Markdown file")
    parser.set_defaults(run=pipelines)


def _add_samplers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--comfyui", type=Path, help="checkout of ComfyUI, whose requirements are installed")
    parser.add_argument("--steps", type=_positive, default=8, help="steps (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/samplers.md"), help="Markdown file")
    parser.set_defaults(run=samplers)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def main() -> None:
    """Run a benchmark; a mistake in the settings is told in one sentence."""
    arguments = parse()
    try:
        arguments.run(arguments)
    except Exception as error:
        from solverdistill.support.mistakes import say_and_exit

        say_and_exit(error)


if __name__ == "__main__":
    main()
