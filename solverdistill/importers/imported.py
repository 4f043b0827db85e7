"""What every importer takes and gives: settings that a file does not hold, and the solver that was read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from solverdistill.families.base import Family, Params
from solverdistill.importers.known_models import Model, find_model, model_named_in
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import save_solver
from solverdistill.support.type_checks import check_fields

MAX_STEPS = 1000  # tables grow with the square


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What published files leave out; None takes it from the file, or the importer's own default.

    Args:
        model: Name of the model, one of `solverdistill.importers.known_models.MODELS`.
        grid: Noise levels in place of the published schedule, decreasing, in EDM units or flow times.
        steps: Which table of a file with several.
        solver: Classical solver of a list of steps, or the one under LD3's times.
        order: Its order.
        variant: "bh1" or "bh2" of unipc.
        predict_x0: Whether it extrapolates the denoised image; None: yes.
        nodes: Steps of the teacher, for a list of indices into its uniform grid.
        mu: Logarithm of the time shift, for flow models whose shift depends on the resolution.
        features: Bottleneck features that AMED's predictor reads, (steps, 64) or (steps, samples, 64); zeros otherwise.
    """

    model: str | None = None
    grid: Sequence[float] | None = None
    steps: int | None = None
    solver: str | None = None
    order: int | None = None
    variant: str | None = None
    predict_x0: bool | None = None
    nodes: int | None = None
    mu: float | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def find_model(self, told: str | None, path: str | os.PathLike[str]) -> Model:
        """The model that was asked for, that the file tells, or that its name tells, in this order.

        Raises:
            ValueError: none of them does.
        """
        if self.model is not None:
            return find_model(self.model)
        found = model_named_in(told or "") or model_named_in("/".join(Path(path).absolute().parts[-2:]))
        if found is None:
            raise ValueError(f"file {path} does not say which model it belongs to; give it, for example model=cifar10")
        return found

    def options_of(self, names: Sequence[str]) -> dict[str, Any]:
        """The settings of these names that are not None."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: given[name] for name in names if given[name] is not None}


@dataclass(frozen=True)
class Imported:
    """A solver read from a foreign file.

    Args:
        program: The table.
        provenance: Where it comes from; goes into the solver file as it is.
        family: The family that it can be trained on as, or None where the roster has none.
        params: Raw params of that family.
    """

    program: SolverProgram
    provenance: dict[str, Any]
    family: Family | None = None
    params: Params | None = None

    @property
    def remarks(self) -> list[str]:
        """What a user should know about the import, one sentence each."""
        return list(self.provenance["imported"]["remarks"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as a solver file."""
        hyperparameters = None if self.family is None else self.family.hyperparameters()
        return save_solver(path, self.program, hyperparameters, self.params, self.provenance)


@dataclass(frozen=True)
class Source:
    """A published method, as provenance names it."""

    format: str
    repository: str
    paper: str


def make_imported(
    path: str | os.PathLike[str],
    source: Source,
    model: Model | None,
    solver: Family | SolverProgram,
    params: Params | None = None,
    remarks: Sequence[str] = (),
    guidance: float | None = None,
) -> Imported:
    """Put an imported solver together with its provenance.

    Args:
        path: The file it came from.
        source: What the format is and who published it.
        model: The model it belongs to, where known.
        solver: The family with its `params`, or a table that no family has.
        remarks: What a user should know, one sentence each.
        guidance: Guidance scale it was fitted for.
    """
    family = solver if isinstance(solver, Family) else None
    if family is not None and family.steps > MAX_STEPS:
        raise ValueError(f"file {path} asks for {family.steps} steps; more than {MAX_STEPS} are no published solver")
    program = solver.program(params) if isinstance(solver, Family) else solver
    provenance: dict[str, Any] = {
        "source": f"{source.repository}; {source.paper}",
        "imported": {
            "format": source.format,
            "file": Path(path).name,
            "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "repository": source.repository,
            "paper": source.paper,
            "remarks": list(remarks),
        },
    }
    if model is not None:
        provenance["teacher"] = model.description()
    if guidance is not None:
        provenance["guidance"] = float(guidance)
    return Imported(program.detach(), provenance, family, params)
