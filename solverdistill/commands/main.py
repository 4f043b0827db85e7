"""Distil a frozen diffusion or flow model into a tiny ODE solver, and use it.

solverdistill train solver=epd model=edm_digits
solverdistill sample model=edm_digits solver_file=outputs/a/solver.json seeds=0-63
solverdistill zoo list --model cifar10
eval "$(solverdistill completion bash)"
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib import import_module

from solverdistill.commands import COMMANDS
from solverdistill.support.mistakes import say_and_exit
from solverdistill.version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"solverdistill {__version__}")
        return
    if name not in COMMANDS:
        print(f"{usage()}\n\nerror: {f'{name!r} is no command' if name else 'name a command'}", file=sys.stderr)
        sys.exit(2)
    module = f"solverdistill.commands.{COMMANDS[name].module}"
    if COMMANDS[name].config is None:
        import_module(module).main(rest)
        return
    # Lightning starts the other processes of a run as `python -m <name of __main__>` with these arguments.
    sys.argv[1:] = rest
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:  # without the extra, a command cannot even be loaded
        say_and_exit(error)


def usage() -> str:
    """What `--help` prints."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {command.about}" for name, command in COMMANDS.items()]
    head = "usage: solverdistill COMMAND ...    (COMMAND --help tells its settings; --version)"
    return "\n".join([head, "", str(__doc__).strip(), "", "commands:", *rows])
