"""Whether a solver and the MODEL at hand go together: what is refused, and what is said and played all the same.

A MODEL's *states* are one of two kinds (`solverdistill.consumers.state_scales`): x_0 + sigma n for eps, v and EDM
models, (1 - t) x_0 + t n for flow models. It is asked how it adds noise, so that samplings of other nodes count too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from solverdistill.consumers.kdiffusion import convention_of
from solverdistill.noise.paths import make_path
from solverdistill.programs.solver_file import SolverFile

KINDS = {"edm": "an eps or v model", "flow": "a flow model"}
PROBE = 0.25  # a noise level at which the two kinds differ
SLACK = 1.25  # of the highest sigma: solvers with times of their own may be told levels slightly beyond it


def states_of(sampling: Any) -> str | None:
    """The kind of a MODEL's states, "edm" or "flow", from its `model_sampling`; None for another one."""
    one, none, sigma = torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([PROBE])
    noise = float(sampling.noise_scaling(sigma, one.clone(), none.clone()))
    signal = float(sampling.noise_scaling(sigma, none.clone(), one.clone()))
    for kind, expected in (("edm", 1.0), ("flow", 1 - PROBE)):
        if math.isclose(noise, PROBE, rel_tol=1e-5) and math.isclose(signal, expected, rel_tol=1e-5):
            return kind
    return None


def check_states(sampling: Any) -> str:
    """The kind of a MODEL's states.

    Raises:
        ValueError: it is neither of the two.
    """
    own = states_of(sampling)
    if own is None:
        raise ValueError(
            f"this MODEL ({type(sampling).__name__}) adds noise as neither eps nor flow models do, and no solver file "
            "says how to sample it"
        )
    return own


def stated_kind(solver: SolverFile) -> str | None:
    """The kind of model that a file says it was fitted to, "edm" or "flow"; None where it does not say.

    A family may be written on the edm path whatever it is fitted to, so that path alone says nothing.
    """
    facts = solver.teacher
    path = facts.get("path") or solver.family.get("path")
    name = path.get("name") if isinstance(path, Mapping) else path
    if facts.get("prediction") is None and facts.get("path") is None and name in (None, "edm"):
        return None
    return convention_of(solver)


def check_model(solver: SolverFile, sampling: Any, played: str | None = None) -> None:
    """Refuse a MODEL that the solver cannot be played on.

    Args:
        solver: The file.
        sampling: The MODEL's `model_sampling`.
        played: The kind that the sigmas at hand are for; None where there are none yet.
    Raises:
        ValueError: states, noise levels or sigmas do not go together; the message says what would.
    """
    own, stated = check_states(sampling), stated_kind(solver)
    name = solver.family.get("name", "solver")
    if stated is not None and stated != own:
        raise ValueError(
            f"this {name} solver was fitted to {KINDS[stated]} and the MODEL at hand is {KINDS[own]}, to which its "
            "noise levels mean something else; load a solver that was fitted to this kind, or distil one"
        )
    if played is not None and played != own:
        raise ValueError(
            f"these sigmas are those of {KINDS[played]} and the MODEL at hand is {KINDS[own]}; the solver's file does "
            f"not say what it was fitted to, so set `model` of its node to {'flow' if own == 'flow' else 'eps or v'}"
        )
    highest, most = highest_sigma(solver, own), float(sampling.sigma_max)
    if highest > most * SLACK:
        raise ValueError(
            f"this {name} solver asks about noise of sigma {highest:.4g} and the MODEL at hand was trained up to "
            f"{most:.4g}; load a solver that was fitted to it, or distil one"
        )


def highest_sigma(solver: SolverFile, kind: str) -> float:
    """The largest sigma that the network is told."""
    program = solver.program
    scale = program.alpha + program.sigma if kind == "flow" else program.alpha
    return float((program.sigma / scale).max())


def remarks(solver: SolverFile, sampling: Any, guidance: float | None, channels: int | None) -> Iterator[str]:
    """What differs between the MODEL at hand and the one that the file was fitted to, a sentence each.

    Args:
        solver: The file.
        sampling: The MODEL's `model_sampling`.
        guidance: Its guidance scale; None where that is not known.
        channels: Channels of its latents; None where they are not known.
    """
    fitted = solver.provenance.get("guidance")
    scale = fitted.get("scale") if isinstance(fitted, Mapping) else fitted
    if guidance is not None and isinstance(scale, (int, float)):
        if not math.isclose(max(guidance, 1.0), max(scale, 1.0), rel_tol=1e-3):
            yield f"this solver was fitted for guidance {scale:g} and is played with {guidance:g}"
        elif isinstance(fitted, Mapping) and len(fitted) > 1:
            yield f"this solver was fitted for guidance {dict(fitted)}, of which cfg has the scale alone"
    facts = solver.teacher
    shape = facts.get("shape")
    if isinstance(shape, list) and shape and channels is not None and shape[0] != channels:
        yield f"this solver was fitted to samples of {shape[0]} channels, which have {channels} here"
    trained, most = trained_up_to(facts), float(sampling.sigma_max)
    if trained is not None and states_of(sampling) == "edm" and not 0.95 < trained / most < 1.05:
        yield f"this solver was fitted to a model with noise up to sigma {trained:.4g}, which goes to {most:.4g} here"


def trained_up_to(facts: Mapping[str, Any]) -> float | None:
    """sigma / alpha where the teacher of a file begins; None where the file does not say, or at pure noise."""
    if not facts.get("path") or not facts.get("noise_range"):
        return None
    try:
        level = make_path(facts["path"]).level(float(facts["noise_range"][0]))
    except (TypeError, ValueError, LookupError):  # nothing can be made of what it says
        return None
    return None if float(level.alpha) == 0 else float(level.sigma / level.alpha)
