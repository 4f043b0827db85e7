"""Push a solver to the Hugging Face hub with a card made from its file, and pull one.

A repository of a solver holds `solver.json` and `README.md`. Nothing that is pulled is executed; it is read as any
solver file before it is kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solverdistill.programs.solver_file import SolverFile, read_solver
from solverdistill.support.files import write_atomically
from solverdistill.zoo import resolve

FILE = "solver.json"
CARD = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
IN_DIFFUSERS = ("eps", "v", "flow")


def push_solver(
    path: str | os.PathLike[str],
    repository: str,
    private: bool = False,
    license: str | None = None,
    message: str = "Upload a solver",
) -> str:
    """Upload a solver file and its card in one commit; the repository is made where it does not exist.

    Args:
        path: The solver file, or `zoo:<name>`.
        repository: `<user>/<name>` on the hub.
        private: Make the repository a private one.
        license: Licence of the solver, for the card.
        message: Commit message.
    Returns:
        The address of the repository.
    Raises:
        SolverFileError: the file is no solver file; nothing was uploaded.
        ValueError: the name is none of a repository, huggingface_hub is not installed, or the hub refused, for example
            because nobody is logged in.
    """
    card = model_card(path, repository, license)
    library = _library()
    operations = [
        library.CommitOperationAdd(FILE, resolve(path).read_bytes()),
        library.CommitOperationAdd(CARD, card.encode()),
    ]
    hub = library.HfApi()
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.create_commit(repository, operations, commit_message=message)
    except Exception as error:  # the library's own and those of its connection
        raise ValueError(f"the hub refused {repository}: {_line(error)}; `hf auth login` logs in") from None
    return str(address)


def pull_solver(
    repository: str,
    out: str | os.PathLike[str] = FILE,
    file: str = FILE,
    revision: str | None = None,
) -> Path:
    """Download a solver file, check it, and write it to `out`.

    Args:
        repository: `<user>/<name>` on the hub.
        out: Where to write it.
        file: Its name in the repository.
        revision: Branch, tag or commit; None is the newest.
    Raises:
        ValueError: the hub has no such repository or file, it is no solver file, or huggingface_hub is not installed;
            `out` is left as it was.
    """
    _check_name(repository)
    library = _library()
    try:
        found = library.hf_hub_download(repository, file, revision=revision)
    except Exception as error:  # the library's own and those of its connection
        raise ValueError(f"the hub gave no {file} of {repository}: {_line(error)}") from None
    read_solver(found)
    return write_atomically(out, Path(found).read_text(encoding="utf-8"))


def model_card(path: str | os.PathLike[str], repository: str, license: str | None = None) -> str:
    """The card of a solver, Markdown with the hub's metadata.

    Raises:
        SolverFileError: the file is no solver file.
        ValueError: the name is none of a repository.
    """
    _check_name(repository)
    solver = read_solver(path)
    teacher = solver.teacher
    name, model = repository.split("/")[1], str(teacher.get("name", "a diffusion model"))
    program = solver.program
    intro = (
        f"A sampler for **{model}** in {program.nfe} evaluations of the network ({program.depth} of them one after the "
        "other), as a table of numbers. The network itself is not changed and not in here."
    )
    title = f"# {name}"
    parts = [_metadata(model, license), title, intro, _facts(solver), _results(solver), _usage(solver, repository)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(model: str, license: str | None) -> str:
    lines = ["---", "library_name: solverdistill", "tags:", "- diffusion", "- ode-solver", "- sampler"]
    if REPOSITORY.fullmatch(model):
        lines.append(f"base_model: {model}")
    if license:
        lines.append(f"license: {_line(license)}")
    return "\n".join([*lines, "---"])


def _facts(solver: SolverFile) -> str:
    provenance = solver.provenance
    teacher, path = solver.teacher, _mapping(solver.family.get("path"))
    count = sum(value.numel() for value in solver.params.values())
    facts = {
        "teacher": teacher.get("name"),
        "prediction": teacher.get("prediction"),
        "guidance scale": _guidance(provenance.get("guidance")),
        "evaluations (nfe)": solver.program.nfe,
        "one after the other (depth)": solver.program.depth,
        "solver family": solver.family.get("name", "a table without a family"),
        "raw params": count or None,
        "noise path": path.get("name"),
        "source": provenance.get("source"),
        "package version": provenance.get("version"),
    }
    rows = [f"| {name} | {_line(value)} |" for name, value in facts.items() if value is not None]
    notes = [f"- {_line(note)}" for note in _mapping(provenance.get("imported")).get("remarks", [])]
    return "\n".join(["| | |", "|---|---|", *rows]) + ("\n\n" + "\n".join(notes) if notes else "")


def _guidance(value: Any) -> Any:
    """A scale as it is, a rule as "2 to 6, interval 0.8 to 0.2, channels 3"."""
    if not isinstance(value, Mapping):
        return value
    words = []
    for name in ("scale", "interval", "channels"):
        if value.get(name) is not None:
            numbers = value[name] if isinstance(value[name], list) else [value[name]]
            words.append(f"{name} {' to '.join(f'{number:g}' for number in numbers)}")
    return ", ".join(words).removeprefix("scale ")


def _results(solver: SolverFile) -> str:
    rows = []
    for name, value in _mapping(solver.provenance.get("metrics")).items():
        if isinstance(value, (int, float)):
            rows.append(f"| {_line(name)} | {value:.6g} | measured when it was exported |")
    published = solver.provenance.get("published")
    for result in published if isinstance(published, list) else []:
        rows.append(f"| {_line(result['metric'])} | {result['value']:g} | {_line(result['reference'])} |")
    return "\n".join(["| result | value | from |", "|---|---|---|", *rows]) if rows else ""


def _usage(solver: SolverFile, repository: str) -> str:
    text = f"""## Use it

With the package `solverdistill` (torch and numpy are all it needs):

```sh
solverdistill pull {repository} --out {FILE}
```

In plain torch, `denoiser(x, alpha, sigma)` being the denoised image of a state `x = alpha * x_0 + sigma * noise`:

```python
import torch
from solverdistill import load_solver, sample

program = load_solver("{FILE}")
images = sample(program, denoiser, torch.randn(shape))
```"""
    if solver.teacher.get("prediction") not in IN_DIFFUSERS:
        return text
    return (
        text
        + f"""

In diffusers:

```python
from solverdistill.consumers.diffusers import LearnedSolverScheduler

pipe.scheduler = LearnedSolverScheduler.from_solver("{FILE}", pipe)
image = pipe(prompt, num_inference_steps=pipe.scheduler.nfe).images[0]
```"""
    )


def _check_name(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"{repository!r} is no name of a repository on the hub; give <user>/<name>")


def _library() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise ValueError("the hub needs the library huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _line(value: Any) -> str:
    """A value as one line that cannot end a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
