"""Print the script that lets a shell complete commands, settings and their choices.

    eval "$(solverdistill completion bash)"                                        # in ~/.bashrc
    eval "$(solverdistill completion zsh)"                                         # in ~/.zshrc, after compinit
    solverdistill completion fish > ~/.config/fish/completions/solverdistill.fish

The scripts ask `solverdistill completion words LINE`, which reads file names alone: no torch, no hydra.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from solverdistill import zoo
from solverdistill.commands import COMMANDS
from solverdistill.training.config_files import find_configs

SCRIPTS = {
    # Bash breaks words at "=", so that it wants what comes after it alone. A group awaits its choice: no space.
    "bash": """
_solverdistill() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=($(solverdistill completion words "$line"))
    [[ ${line##* } == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]##*=}")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o default -F _solverdistill solverdistill
""",
    "zsh": """
_solverdistill() {
    local -a found=(${(f)"$(solverdistill completion words "$LBUFFER")"})
    local -a open=(${(M)found:#*=}) whole=(${found:#*=})
    (( $#found )) || { _files; return }
    compadd -Q -S '' -a open
    compadd -Q -a whole
}
compdef _solverdistill solverdistill
""",
    "fish": """
complete -c solverdistill -a '(solverdistill completion words (commandline -cp))'
""",
}
OF_HYDRA = ("--help", "--multirun", "--cfg", "--config-dir", "--config-name")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "solverdistill completion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("shell", choices=(*SCRIPTS, "words"))
    made.add_argument("line", nargs="?", default="", help="with words: the command line up to the cursor")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a script, or what may follow a command line."""
    options = parser().parse_args(arguments)
    if options.shell == "words":
        print("\n".join(complete(options.line)))
    else:
        print(SCRIPTS[options.shell].strip())


def complete(line: str) -> list[str]:
    """What may stand in the place of the last word of a line, which may be empty; the first is `solverdistill`."""
    *before, word = re.split(r"\s+", line.lstrip())[1:] or [""]
    if not before:
        found = [*COMMANDS, "--help", "--version"]
    elif before[0] not in COMMANDS:
        found = []
    elif COMMANDS[before[0]].config:
        found = _settings(f"{COMMANDS[before[0]].config}", before, word)
    else:
        found = _options(before, word)
    return [each for each in found if each.startswith(word)]


def _options(before: list[str], word: str) -> list[str]:
    module = import_module(f"solverdistill.commands.{COMMANDS[before[0]].module}")
    if word.startswith("-"):
        return re.findall(r"--[\w-]+", module.parser().format_usage())
    if before[0] == "zoo":
        return {1: ["list", "show", "export"], 2: zoo.names() if before[1:] != ["list"] else []}.get(len(before), [])
    return list(SCRIPTS) if before == ["completion"] else []


def _settings(config: str, before: list[str], word: str) -> list[str]:
    """Options of hydra, groups and keys of a configuration, or choices of a group."""
    folders = [find_configs()]
    for flag, value in zip(before, before[1:], strict=False):
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value).expanduser())
    if word.startswith("-"):
        return list(OF_HYDRA)
    group, chosen, given = word.partition("=")
    if chosen:
        stem = f"{group}={given[: given.rfind(',') + 1]}"  # a sweep: solver=epd,gas
        return sorted(stem + path.stem for folder in folders for path in folder.glob(f"{group}/*.yaml"))
    text = (folders[0] / f"{config}.yaml").read_text(encoding="utf-8")
    groups = re.findall(r"^  - (?:optional )?(\w+):", text, re.MULTILINE)
    keys = [key for key in re.findall(r"^(\w+):", text, re.MULTILINE) if key not in ("defaults", "hydra")]
    return [f"{name}=" for name in (*groups, *keys)]


if __name__ == "__main__":
    main()
