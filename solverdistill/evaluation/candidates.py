"""The solvers a student is compared with: classical ones, each on the grid it is usually given, at an exact cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill import families
from solverdistill.families.base import Family
from solverdistill.noise.grids import KINDS, Grid, lower_start
from solverdistill.noise.grids_in_use import IN_USE, OF_TRAINING
from solverdistill.noise.levels import float64
from solverdistill.noise.paths import Flow, Path
from solverdistill.programs.playing import Denoise, sample
from solverdistill.programs.program import SolverProgram


@dataclass(frozen=True)
class Candidate:
    """A solver that takes part in a comparison.

    Args:
        label: Name in tables and figures; different for different solvers.
        program: The solver, on the host.
        nfe: Evaluations of the denoiser per sample.
        depth: Sequential network calls per sample.
        kind: "student" for a learned solver, "classical" for one without params.
    """

    label: str
    program: SolverProgram
    nfe: int
    depth: int
    kind: Literal["student", "classical"] = "student"

    @classmethod
    def of(cls, label: str, program: SolverProgram, kind: Literal["student", "classical"] = "student") -> Candidate:
        """A candidate whose costs are those of its program."""
        return cls(label, program.detach().to("cpu"), program.nfe, program.depth, kind)

    def play(self, denoiser: Denoise, noise: Tensor, cond: Any, device: torch.device | str | None) -> Tensor:
        """Its samples from some noise, complete when it returns, so that its time can be taken.

        Args:
            denoiser: The teacher, possibly guided.
            noise: Unit-normal noise. Shape: (images, ...).
            cond: Pytree of conditions; None for none.
            device: Where the denoiser is, and hence the samples; None plays where the noise is.
        """
        noise, cond = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (noise, cond))
        samples = sample(self.program, denoiser, noise, cond)
        if samples.is_cuda:
            torch.cuda.synchronize(samples.device)
        return samples


@dataclass(frozen=True)
class Baseline:
    """A classical solver with the grid that its authors or the field give it.

    Args:
        name: Name in `families.ROSTER`.
        label: Name in tables, without the grid.
        grids: Grid kinds it is tried on, the usual one first; `polynomial` has rho 7. On a flow path all but those that
            go on to 0 are uniform in its time, and a solver of several is tried on the one linear in log-SNR too.
        options: Hyperparameters of the family.
        short: Grid kinds on which it is in the short list; on a flow path it is there on all or none.
    """

    name: str
    label: str
    grids: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    short: tuple[str, ...] = ()


AFS_SUFFIX = " + AFS"
OWN_KINDS = ("dpm_fast", *IN_USE)  # asked for by name, on any path


class ClassicalSet(NamedTuple):
    """Classical solvers of a given cost, and a sentence for each one that cannot have it."""

    candidates: list[Candidate]
    omitted: list[str]


ALL = ("logsnr", "polynomial", "quadratic")
CLASSICAL: tuple[Baseline, ...] = (
    Baseline("euler", "Euler", ("polynomial", "quadratic"), short=("polynomial",)),
    Baseline("heun", "Heun", ("polynomial",)),
    Baseline("dpm2", "DPM-2", ("polynomial",)),
    Baseline("ipndm", "iPNDM-3", ("polynomial", "quadratic"), {"max_order": 3}, ("quadratic",)),
    Baseline("ipndm", "iPNDM-4", ("polynomial", "quadratic"), {"max_order": 4}, ("polynomial",)),
    Baseline("ipndm_v", "iPNDM_v-4", ("polynomial", "quadratic"), {"max_order": 4}),
    Baseline("dpmpp", "DPM++(2M)", ("logsnr", "quadratic"), {"order": 2}),
    Baseline("dpmpp", "DPM++(3M)", ALL, {"order": 3}, ("logsnr",)),
    Baseline("unipc", "UniPC-2", ("logsnr", "quadratic"), {"order": 2}),
    Baseline("unipc", "UniPC-3", ALL, {"order": 3}, ("logsnr", "quadratic")),
    Baseline("deis", "DEIS-tAB2", ("quadratic",), {"max_order": 3}),
    Baseline("deis", "DEIS-tAB3", ("quadratic",), {"max_order": 4}, ("quadratic",)),
    Baseline("dpmpp_2s", "DPM++2S", ("logsnr",)),
    Baseline("dpmpp_3s", "DPM++3S", ("logsnr",)),
    Baseline("dpm_2s", "DPM-2S", ("logsnr",)),
    Baseline("dpm_3s", "DPM-3S", ("logsnr",)),
    Baseline("dpm_fast", "DPM-fast", ("dpm_fast",)),
    Baseline("lms", "LMS-4", ("polynomial", "quadratic")),
    Baseline("heunpp2", "Heun++", ("logsnr",)),
    Baseline("gradient_estimation", "GradEst", ("polynomial", "quadratic")),
    Baseline("res_multistep", "RES-M", ("logsnr", "quadratic")),
    Baseline("res_2s", "RES-2S", ("logsnr",)),
    Baseline("res_3s", "RES-3S", ("logsnr",)),
    Baseline("er_sde", "ER-SDE-3", ("logsnr", "polynomial", "quadratic")),
    Baseline("sa_solver", "SA-Solver", ("logsnr", "quadratic")),
)


def classical_candidates(
    path: Path,
    noise_range: tuple[float, float],
    nfe: int | None = None,
    depth: int | None = None,
    names: Sequence[str] | None = None,
    shift: float = 0.0,
    short: bool = False,
) -> ClassicalSet:
    """Find every classical solver that spends exactly `nfe` evaluations, or takes exactly `depth` sequential calls.

    A solver that misses the number by the parity of its steps, such as Heun at an odd one, is tried with an analytical
    first step. On a flow path the grids are uniform in its time and, where both ends are finite, in log-SNR.

    Args:
        path: The teacher's path.
        noise_range: Largest and smallest noise level, in the path's own unit.
        nfe: Evaluations to match.
        depth: Sequential calls to match; a classical solver has as many as evaluations.
        names: Families to take part, by any of their names, on their usual grids; or each with a grid of its own,
            "dpmpp_2m@karras". None for all.
        shift: How much larger log(alpha / sigma) is where the grids begin, see `grids.lower_start`; labels name the
            level then. Grids that belong to a network's schedule are left out.
        short: Take those of the short list alone.
    Returns:
        The candidates for each of the two numbers, without repetition, and a sentence for each omission.
    Raises:
        ValueError: neither number is given, or one is below 1, or a name is that of no classical solver, or nothing
            is left of the noise range.
    """
    budgets = list(dict.fromkeys(budget for budget in (nfe, depth) if budget is not None))
    if not budgets or min(budgets) < 1:
        raise ValueError(f"classical solvers are sought by nfe or depth, at least 1; got nfe={nfe}, depth={depth}")
    wanted = _wanted(names, short)
    candidates: list[Candidate] = []
    omitted: list[str] = []
    suffix = ""
    if shift:
        lowered = lower_start(Grid(start=noise_range[0], end=noise_range[1]), path, shift)
        noise_range = lowered.start, lowered.end
        suffix = f" from {float(torch.exp(-path.half_log_snr(lowered.start))):.3g}"
    for budget in budgets:
        for baseline in wanted:
            for title, grid in _grids(baseline, path, noise_range, shift):
                try:
                    family, afs = _at_cost(baseline, budget, grid, path)
                except ValueError as error:
                    omitted.append(f"{baseline.label} {title}{suffix} at {budget}: {error}")
                    continue
                label = f"{baseline.label}{AFS_SUFFIX if afs else ''} {title}{suffix}"
                candidates.append(Candidate.of(label, family.program(), "classical"))
    return ClassicalSet(candidates, omitted)


def _wanted(names: Sequence[str] | None, short: bool) -> list[Baseline]:
    """The baselines that were asked for.

    Raises:
        ValueError: a name is that of no classical solver, or of no grid.
    """
    if short:
        return [replace(baseline, grids=baseline.short) for baseline in CLASSICAL if baseline.short]
    known = list(dict.fromkeys(baseline.name for baseline in CLASSICAL))
    found: dict[tuple[str, str], list[Baseline]] = {}
    for given in known if names is None else names:
        name, _, kind = given.partition("@")
        name = families.ALIASES.get(name, name)
        if name not in known:
            also = ", ".join(families.ALIASES)
            raise ValueError(f"baseline {given!r} is no classical solver; known: {', '.join(known)}, and as {also}")
        if kind and kind not in KINDS:
            raise ValueError(f"baseline {given!r} is on no grid; known: {', '.join(KINDS)}")
        own = [baseline for baseline in CLASSICAL if baseline.name == name]
        found[name, kind] = [replace(baseline, grids=(kind,)) for baseline in own] if kind else own
    return [baseline for group in found.values() for baseline in group]


def _grids(
    baseline: Baseline, path: Path, noise_range: tuple[float, float], shift: float
) -> Iterator[tuple[str, Grid]]:
    """The grids a solver is tried on, with their titles; the number of steps is chosen later."""
    start, end = noise_range
    if any(kind in OWN_KINDS for kind in baseline.grids):
        for kind in baseline.grids:
            if kind not in OF_TRAINING or not shift:
                yield kind, Grid(kind, start=start, end=end)
        return
    if isinstance(path, Flow):
        # The time of a flow path is straight already; exponents made for sigma in [0.002, 80] have no meaning on it.
        yield "uniform", Grid("flow_shift", start=start, end=end)
        if len(baseline.grids) > 1 and bool(path.half_log_snr(float64([start, end])).isfinite().all()):
            yield "logsnr", Grid("logsnr", start=start, end=end)
        return
    for kind in baseline.grids:
        yield kind, Grid(kind, start=start, end=end)


def _at_cost(baseline: Baseline, nfe: int, grid: Grid, path: Path) -> tuple[Family, bool]:
    """Build a solver that spends exactly `nfe`, and say whether it takes an analytical first step."""
    try:
        return families.build_for_nfe(baseline.name, nfe, grid, path, **baseline.options), False
    except ValueError as error:
        try:
            options = {**baseline.options, "afs": True}
            return families.build_for_nfe(baseline.name, nfe, grid, path, **options), True
        except ValueError:
            raise error from None
