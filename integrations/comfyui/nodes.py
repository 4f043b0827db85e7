"""The nodes: a solver file becomes a SAMPLER and the SIGMAS it was fitted to.

Needs torch and solverdistill's core, nothing else. Sampler and sigmas go to SamplerCustom or SamplerCustomAdvanced.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import comfy.samplers  # pyright: ignore[reportMissingImports]

from solverdistill.consumers.kdiffusion import convention_of, sample_learned, sigmas_of
from solverdistill.programs.solver_file import SolverFile, read_solver

MODELS = ("from file", "eps or v", "flow")
CONVENTIONS = {"eps or v": "edm", "flow": "flow"}
BATCHES = {"auto": None, "as one batch": True, "one after the other": False}


class LoadLearnedSolver:
    """Load a solver.json."""

    CATEGORY = "sampling/custom_sampling"
    FUNCTION = "load"
    RETURN_TYPES = ("SAMPLER", "SIGMAS", "STRING")
    RETURN_NAMES = ("sampler", "sigmas", "about")
    DESCRIPTION = "A distilled solver: use sampler and sigmas together, at denoise 1 and the guidance it was fitted to."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node asks for."""
        place = ("STRING", {"default": "solver.json", "tooltip": "Path of a solver.json, or zoo:<name>"})
        model = (list(MODELS), {"tooltip": "What the model predicts, where the file does not say it"})
        batch = (list(BATCHES), {"tooltip": "Evaluations that do not depend on each other; auto takes one batch"})
        return {"required": {"file": place, "model": model, "parallel": batch}}

    @classmethod
    def IS_CHANGED(cls, file: str, model: str, parallel: str) -> str:
        """Digest of the file, so that an edited one is read again."""
        path = Path(file).expanduser()
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else file

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None = None) -> bool | str:
        """Whether the file can be played, or the sentence why not; a connected input is not known yet."""
        try:
            if file is not None:
                read_file(file)
        except ValueError as error:
            return str(error)
        return True

    def load(self, file: str, model: str, parallel: str) -> tuple[Any, Any, str]:
        """Sampler, sigmas, and a line about the solver."""
        solver = read_file(file)
        convention = CONVENTIONS.get(model) or convention_of(solver)
        options = {"solver": solver, "parallel": BATCHES[parallel]}
        sampler = comfy.samplers.KSAMPLER(sample_learned, extra_options=options)
        return sampler, sigmas_of(solver, convention), describe(solver)


def read_file(file: str) -> SolverFile:
    """Read a solver.json, or `zoo:<name>`."""
    return read_solver(file if file.startswith("zoo:") else Path(file).expanduser())


def describe(solver: SolverFile) -> str:
    """Name, costs and what the solver was fitted to, in a line."""
    teacher = solver.provenance.get("teacher")
    fitted = teacher.get("name") if isinstance(teacher, dict) else teacher
    parts = [f"{solver.family.get('name', 'solver')}: nfe {solver.program.nfe}, depth {solver.program.depth}"]
    parts += [f"fitted to {fitted}"] if fitted else []
    guidance = solver.provenance.get("guidance")
    parts += [f"guidance {guidance}"] if guidance is not None else []
    return ", ".join(parts)


NODE_CLASS_MAPPINGS = {"LoadLearnedSolver": LoadLearnedSolver}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadLearnedSolver": "Load learned solver"}
