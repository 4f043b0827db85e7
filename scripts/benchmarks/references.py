"""Which reference a run chooses, what it says of its error, and what that error is: the table of docs/references.md.

    python -m scripts.benchmarks.references --nfe 4 6 8 model=edm_digits
    python -m scripts.benchmarks.references --nfe 4 6 8 model=callable model.target=... (see mnist_ddpm, emnist_flow)

The student is `corrected`, everything else the default. Errors are those of held-out samples, which the choice has not
seen, against the chosen grid with ten times the steps (at least 640).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.references.solving import Reference
from solverdistill.references.trials import distance
from solverdistill.training.config_files import find_configs
from solverdistill.training.configuration import Run

FINEST = 640


def main() -> None:
    """Print a row of the table for every nfe, and what the run says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--samples", type=int, default=16, help="held-out samples")
    parser.add_argument("overrides", nargs="*", help="model=... and other choices of a run")
    args, more = parser.parse_known_args()
    exact: dict[str, Tensor] = {}
    for nfe in args.nfe:
        own = ["solver=corrected", f"solver.nfe={nfe}", "targets.cache=null", "run_name=references", "output_dir=."]
        with initialize_config_dir(str(find_configs()), version_base="1.3"):
            plain: Any = OmegaConf.to_container(compose("train", [*own, *args.overrides, *more]), resolve=True)
        print(row(Run.of(plain), args.samples, exact), flush=True)


def row(run: Run, samples: int, exact: dict[str, Tensor]) -> str:
    """One row and a sentence; `exact` keeps the fine solves of every grid."""
    choice = run.choose(run.student, "cpu")
    chosen, first = choice.reference, SPLITS["validation"]
    noise, cond = seeded_noise(range(first, first + samples), run.teacher)

    def end(reference: Reference) -> Tensor:
        with torch.no_grad():
            return reference.solve(run.teacher, run.denoiser, noise, cond).end()

    if chosen.grid not in exact:
        exact[chosen.grid] = end(replace(chosen, steps=max(FINEST, 10 * chosen.steps)))
    true, default = (distance(end(one), exact[chosen.grid]) for one in (chosen, Reference()))
    share = choice.evaluations / run.size()
    cells = [run.teacher.name, run.student.family.nfe, f"{chosen.grid}, {chosen.steps}", f"{choice.error or 0:.5f}"]
    cells += [f"{true:.5f}", f"{default:.5f}", f"{choice.expected or 0:.4f}", f"{choice.evaluations:,}", f"{share:.1%}"]
    return f"| {' | '.join(map(str, cells))} |\n{choice.summary()}"


if __name__ == "__main__":
    main()
