"""What an evaluation of solver files is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from solverdistill.evaluation.metrics.set_distances import BACKENDS
from solverdistill.families.step_search import check_cost
from solverdistill.references.seeding import SPLITS
from solverdistill.support.type_checks import check_fields, check_ranges


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated and how.

    Args:
        solvers: Solver files.
        baselines: Classical families by any of their names, each on the grids it is usually given, or on a stated one,
            "dpmpp_2m@karras".
        nfe: Costs of the classical solvers; None takes every nfe and every depth of the solver files.
        baseline_shifts: Where the classical solvers begin: how much larger log(alpha / sigma) is than at the top of the
            noise range, or at sigma / alpha = 80 where that is above. Each solver is measured from each.
        samples: Held-out samples.
        batch_size: Samples per network call and stage.
        guidance: Guidance scale, or a mapping as `guidance.GuidanceRule` takes it; None takes that of the solver files,
            or 1.
        extractor: Features for distances between sets: "auto" (the teacher's own), "fid", a registered one; None for
            no such distances.
        real: Real images: "auto" (the teacher's own data set), "reference" (the reference end points), or a folder,
            .npz, .npy or MNIST file.
        backend: Library of the kernel distance: "cleanfid", which takes all images as 8-bit pixels, or "torchmetrics".
        subset: Samples and real images that kernel distance, precision and recall are computed on.
        neighbours: k of precision and recall.
        lpips: Backbone of LPIPS ("vgg", "alex", "squeeze"); None leaves it out.
        data_range: Values of the teacher's data that black and white have.
        grid_samples: Rows of the sample grid.
    """

    solvers: list[str] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    nfe: list[int] | None = None
    baseline_shifts: list[float] = field(default_factory=lambda: [0.0])
    samples: int = 2048
    batch_size: int = 128
    guidance: Any = None
    extractor: Any = "auto"
    real: str = "auto"
    backend: str = "cleanfid"
    subset: int = 5000
    neighbours: int = 3
    lpips: str | None = None
    data_range: list[float] = field(default_factory=lambda: [-1.0, 1.0])
    grid_samples: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        shifts: Any = self.baseline_shifts
        if not isinstance(shifts, list) or not shifts or not all(_is_shift(shift) for shift in shifts):
            raise ValueError(f"baseline_shifts must be a list of numbers of at least 0, such as [0,1,2], not {shifts}")
        check_ranges(self, "", "samples", "batch_size", "subset", "neighbours", "grid_samples", least=1)
        check_ranges(self, "", "samples", most=SPLITS["validation"])
        for cost in self.nfe or []:
            check_cost("nfe", cost)
        if self.backend not in BACKENDS:
            raise ValueError(f"backend {self.backend!r} is unknown; known: {', '.join(BACKENDS)}")
        if not self.solvers and not (self.baselines and self.nfe):
            raise ValueError("nothing to evaluate: name solver files, solvers=[...], or baselines=[...] with nfe=[...]")
        if len(self.data_range) != 2 or not self.data_range[0] < self.data_range[1]:
            raise ValueError(f"data_range must be two ascending numbers, not {self.data_range}")


def _is_shift(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
