"""Search the noise levels of a student without gradients, and print them as a list for `solver.grid`.

    solverdistill search-grid model=edm_digits +search.method=gits +search.steps=6
    grid=$(solverdistill search-grid model=edm_digits +search.method=oss +search.steps=6)
    solverdistill train solver=dss model=edm_digits solver.nfe=6 '~solver.grid' "+solver.grid=$grid"

hydra puts no list in the place of a rule, so the rule is taken away first.

Takes the model, guidance, seed and trainer of `train`. Settings under `+search.`: method (gits or oss) and steps;
samples, batch_size, reference.steps and the rest of the fine reference; and those of the method: metric, gamma, afs,
solver (gits), combine (oss). What the search cost is told on stderr.
"""

from __future__ import annotations

import sys
from typing import Any

from solverdistill.commands.entry import command


@command("train", log_to="none")
def main(config: dict[str, Any]) -> None:
    """Print the levels, and on stderr what they cost."""
    from solverdistill.denoisers.guidance import make_guided
    from solverdistill.fits.grid_search.search import make_method, search_grid
    from solverdistill.references.solving import Reference
    from solverdistill.support.instantiate import instantiate
    from solverdistill.training.configuration import check_config
    from solverdistill.training.trainer import device_of

    options = config.pop("search", {})
    check_config(config)
    method, steps = options.pop("method", "gits"), options.pop("steps", None)
    sizes = {name: options.pop(name) for name in ("samples", "batch_size") if name in options}
    reference = Reference(**{"steps": 60, **options.pop("reference", {})})
    chosen = make_method(method, options)
    teacher, denoiser = make_guided(instantiate(config["model"], "model"), config["guidance"])
    device, seed = device_of(config["trainer"]), config["seed"]
    denoiser.to(device)
    found = search_grid(chosen, teacher, denoiser, steps, reference=reference, seed=seed, device=device, **sizes)
    print(f"[{','.join(map(repr, found.levels))}]")
    print(f"{method}: points {list(found.indices)}; {found.evaluations} evaluations of the teacher", file=sys.stderr)


if __name__ == "__main__":
    main()
