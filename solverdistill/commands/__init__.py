"""The commands of `solverdistill`: one file each, which reads arguments and calls the package."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """One command.

    Args:
        module: Its file in this folder.
        about: What it does, in half a line.
        config: The configuration whose settings it takes as hydra overrides; None for one with options of its own.
    """

    module: str
    about: str
    config: str | None = None


COMMANDS = {
    "train": Command("train", "distil a solver", "train"),
    "make-targets": Command("make_targets", "fill the cache of reference trajectories ahead of training", "train"),
    "sample": Command("sample", "images from a solver file and its teacher", "sample"),
    "evaluate": Command("evaluate", "compare solver files with classical solvers", "evaluate"),
    "search-grid": Command("search_grid", "search the noise levels of a student without gradients", "train"),
    "check-teacher": Command("check_teacher", "say whether a teacher's settings are right", "train"),
    "import": Command("import_coefficients", "turn a published coefficient file into a solver file"),
    "export": Command("export", "write a solver file as another program reads it"),
    "zoo": Command("zoo", "published solvers that come with the package"),
    "push": Command("push", "upload a solver file with a card to the Hugging Face hub"),
    "pull": Command("pull", "download a solver file from the Hugging Face hub"),
    "completion": Command("completion", "print the completion script of a shell"),
}
