"""The evaluation that stands on its own: solver files and classical solvers on many samples, in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import make_guided
from solverdistill.evaluation.candidates import Candidate, classical_candidates
from solverdistill.evaluation.end_points import EndPoints
from solverdistill.evaluation.measuring import Measured, Progress, Yardstick, measure, measure_real
from solverdistill.evaluation.metrics.feature_spaces import FeatureSpace, open_space
from solverdistill.evaluation.metrics.paired_errors import Distance
from solverdistill.evaluation.plan import EvaluationPlan
from solverdistill.evaluation.real_images import ArrayImages, RealImages, open_images
from solverdistill.objectives import features
from solverdistill.objectives.lpips import LPIPS
from solverdistill.programs.solver_file import SolverFile, read_solver
from solverdistill.references.choice import Choice
from solverdistill.references.choosing import choose_reference
from solverdistill.references.targets import Source, TargetSettings
from solverdistill.support.memory import lower
from solverdistill.support.processes import processes

REFERENCE_IMAGES = "reference"
Shown = Callable[[str], Progress]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation has found.

    Args:
        measured: Students, then classical solvers, then the reference, with their first images.
        names: What "FD" and "KD" are called on the extractor.
        facts: What was measured and how, by name.
        warnings: Sentences that a reader must not miss.
    """

    measured: list[Measured]
    names: dict[str, str]
    facts: dict[str, str]
    warnings: list[str]


def evaluate(
    plan: EvaluationPlan,
    teacher: Teacher,
    targets: TargetSettings,
    device: torch.device | str = "cpu",
    progress: Shown | None = None,
) -> Evaluation:
    """Measure solver files and classical solvers; every process of a group gets the whole result.

    Args:
        plan: What and how.
        teacher: The frozen network.
        targets: Reference solver, seed and cache; its counts do not matter.
        device: Where the network runs.
        progress: Makes the callback that shows how far a kind of work is.
    Raises:
        ValueError, FileNotFoundError: a setting or a file cannot be used.
    """
    files = {path: read_solver(path) for path in plan.solvers}
    guidance = _guidance(plan.guidance, files)
    teacher, denoiser = make_guided(teacher, guidance)
    students, warnings = _students(files, teacher)
    budgets = plan.nfe or sorted({cost for c in students for cost in (c.nfe, c.depth) if cost > 0})
    classical: list[Candidate] = []
    for nfe, shift in product(dict.fromkeys(budgets), dict.fromkeys(plan.baseline_shifts)):
        found = classical_candidates(teacher.path, teacher.noise_range, nfe, names=plan.baselines, shift=shift)
        classical += found.candidates
        warnings += [f"left out: {sentence}" for sentence in found.omitted]
    lpips = None if plan.lpips is None else LPIPS(plan.lpips)
    denoiser.to(device)
    space = open_space(plan.extractor, plan.backend, teacher, device)
    real = None if space is None else _real_images(plan.real, space, teacher, 1 if teacher.shape[0] == 1 else 3)
    choice = _reference(plan, targets, teacher, denoiser, [*students, *classical], device, progress)
    targets = replace(targets, reference=choice.reference, measure=())
    ends = EndPoints(Source(targets, "test", teacher, denoiser, device), plan.samples)
    shown = progress or (lambda what: lambda label, done, total: None)
    with torch.no_grad(), lower("the evaluation", f"lower batch_size ({plan.batch_size})"):
        yardstick, reference = _prepare(plan, teacher, denoiser, ends, lpips, space, real, shown)
        measured = _measure_all([*students, *classical], denoiser, ends, yardstick, plan.batch_size, shown("samples"))
    measured = [replace(one, row=replace(one.row, reference_error=choice.error)) for one in (*measured, reference)]
    names = {} if space is None else {"FD": space.frechet, "KD": space.kernel}
    if space is not None and yardstick.real is not None and min(yardstick.real.count, plan.samples) <= space.width:
        warnings.append(
            f"no {space.frechet}: its {space.width} features need more than {space.width} samples and real images, not "
            f"{plan.samples} and {yardstick.real.count}"
        )
    facts = _facts(plan, teacher, targets, choice, guidance, space, real, device)
    return Evaluation(measured, names, facts, warnings)


def _prepare(
    plan: EvaluationPlan,
    teacher: Teacher,
    denoiser: Any,
    ends: EndPoints,
    lpips: Distance | None,
    space: FeatureSpace | None,
    real: RealImages | None,
    shown: Shown,
) -> tuple[Yardstick, Measured]:
    """Solve the references, see the real images, and measure the reference itself."""
    bar = shown("end points")
    ends.prepare(lambda done: bar(REFERENCE_IMAGES, done, plan.samples), plan.batch_size)
    images, subset = image_map(teacher, plan.data_range), plan.subset
    shape = images(torch.zeros(1, *teacher.shape, device=ends.source.device)).shape[1:]
    statistics, shown_images = None, min(plan.grid_samples, plan.samples)
    if space is not None and real is not None:
        statistics = measure_real(real, space, subset, plan.batch_size, shape, shown("features"))
    options = {"backend": plan.backend, "neighbours": plan.neighbours, "subset": subset, "images": shown_images}
    yardstick = Yardstick(images, lpips, space, statistics, **options)
    reference = measure(None, denoiser, ends, yardstick, plan.batch_size, shown("reference"))
    if space is not None and real is None:
        statistics = yardstick.statistics(plan.samples)
        assert statistics is not None
        for start, stop in ends.batches(plan.batch_size):
            statistics.update(space(images(ends.take(start, stop)[2])), range(start, stop))
        yardstick = Yardstick(images, lpips, space, statistics.reduce(), **options)
    return yardstick, reference


def _measure_all(
    candidates: Sequence[Candidate],
    denoiser: Any,
    ends: EndPoints,
    yardstick: Yardstick,
    batch_size: int,
    bar: Progress,
) -> list[Measured]:
    """Measure every solver, with one progress bar over all of them."""
    measured: list[Measured] = []
    for i, candidate in enumerate(candidates):

        def overall(_: str, done: int, total: int, before: int = i) -> None:
            bar("all solvers", before * total + done, len(candidates) * total)

        measured.append(measure(candidate, denoiser, ends, yardstick, batch_size, overall))
    return measured


def image_map(teacher: Teacher, data_range: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """The map from a teacher's data to images in [-1, 1]: its decoder, then from `data_range` to [-1, 1]."""
    low, high = data_range
    if (low, high) == (-1, 1):
        return teacher.decode
    return lambda x: (teacher.decode(x) - low) * (2 / (high - low)) - 1


def _guidance(chosen: Any, files: dict[str, SolverFile]) -> Any:
    """The guidance that is set, or the one that all files were fitted at."""
    if chosen is not None:
        return chosen
    found: list[Any] = []
    for file in files.values():
        value = file.provenance.get("guidance") or 1.0
        if value not in found:
            found.append(value)
    if len(found) > 1:
        raise ValueError(f"the solver files were fitted at guidance {found}; set guidance to one of them")
    return found[0] if found else 1.0


def _students(files: dict[str, SolverFile], teacher: Teacher) -> tuple[list[Candidate], list[str]]:
    """A candidate for every file, named by its family, and by its folder where two have the same family and cost."""
    warnings: list[str] = []
    names = {path: str(file.family.get("name") or Path(path).stem) for path, file in files.items()}
    keys = [(names[path], file.program.nfe) for path, file in files.items()]
    fingerprint = teacher.fingerprint()
    students: list[Candidate] = []
    for path, file in files.items():
        twin = keys.count((names[path], file.program.nfe)) > 1
        label = f"{names[path]} ({Path(path).resolve().parent.name})" if twin else names[path]
        if any((label, file.program.nfe) == (other.label, other.nfe) for other in students):
            label = f"{names[path]} ({path})"
        students.append(Candidate.of(label, file.program))
        if file.teacher.get("fingerprint") not in (None, fingerprint):
            which = f"{file.teacher.get('name')} {file.teacher['fingerprint']}"
            warnings.append(f"{path} was fitted to another teacher, {which}")
        alpha = float(file.program.readouts.alpha[-1])
        expected = float(teacher.path.alpha(teacher.noise_range[1]))
        if abs(alpha - expected) > 1e-3:
            warnings.append(f"{path} ends at another scale than the reference, alpha {alpha:g} against {expected:g}")
    return students, warnings


def _real_images(place: str, space: FeatureSpace, teacher: Teacher, channels: int) -> RealImages | None:
    """Open the real images; None stands for the reference end points."""
    if place == REFERENCE_IMAGES:
        return None
    if place != "auto":
        return open_images(place, channels)
    own = features.for_teacher(teacher)
    if space.own is None and (own is None or own.real is None):
        raise ValueError(
            f"{teacher.name} brings no real images: give a folder, .npz or MNIST file as real=..., or real=reference"
        )
    return space.own or ArrayImages(f"{teacher.name} data", own.real if own else None)


def _reference(
    plan: EvaluationPlan,
    targets: TargetSettings,
    teacher: Teacher,
    denoiser: Any,
    solvers: Sequence[Candidate],
    device: torch.device | str,
    progress: Shown | None,
) -> Choice:
    """The reference, as exact as the most exact of the solvers needs."""
    finest = max((one.depth for one in solvers if one.kind == "student"), default=max(one.depth for one in solvers))
    size = plan.samples * (targets.reference.steps + sum(one.nfe for one in solvers))
    shown = None if progress is None else progress("reference")
    return choose_reference(targets, teacher, denoiser, finest, size, device, shown)


def _facts(
    plan: EvaluationPlan,
    teacher: Teacher,
    targets: TargetSettings,
    choice: Choice,
    guidance: Any,
    space: FeatureSpace | None,
    real: RealImages | None,
    device: torch.device | str,
) -> dict[str, str]:
    facts = {
        "teacher": f"{teacher.name}, fingerprint {teacher.fingerprint()}, data of shape {tuple(teacher.shape)}",
        "guidance": str(guidance),
        "samples": f"{plan.samples} held-out samples, seed {targets.seed}",
        "reference": choice.summary().removeprefix("reference "),
        "solver files": ", ".join(plan.solvers) or "none",
        "device": f"{device}, {processes()[1]} process(es), batches of {plan.batch_size}",
    }
    if space is not None:
        images = "the reference end points" if real is None else f"{len(real)} images, {real.name}"
        facts["real images"] = images
        facts["features"] = f"{space.width} features of {space.name}; {plan.backend}"
        facts["subset"] = f"first {min(plan.subset, plan.samples)} samples for kernel distance, precision and recall"
    return facts
