"""Fill the cache of reference trajectories ahead of training; takes the same choices and overrides as `train`.

    solverdistill make-targets model=edm_digits targets.train_samples=4096
    solverdistill make-targets model=mixture targets=dopri5 targets.cache=/a/shared/folder

Interrupted, it goes on where it was when started again; several may run at once and share the work. The student does
not matter, unless the reference is nested in its grid.
"""

from __future__ import annotations

import sys
from typing import Any

from solverdistill.commands.entry import command


@command("train", log_to="stdout")
def main(config: dict[str, Any]) -> None:
    """Solve what the cache does not have of every split, and say where it lies."""
    from solverdistill.denoisers.guidance import make_guided
    from solverdistill.references.targets import Source, make_targets
    from solverdistill.support.instantiate import instantiate
    from solverdistill.support.progress import TargetProgress, console
    from solverdistill.training.configuration import check_config, make_student, make_target_settings
    from solverdistill.training.trainer import device_of

    check_config(config)
    settings = make_target_settings(config["targets"])
    teacher, denoiser = make_guided(instantiate(config["model"], "model"), config["guidance"])
    rule = None if settings.reference.nested is None else make_student(config["solver"], teacher).rule
    device = device_of(config["trainer"])
    denoiser.to(device)
    for split in ("train", "validation", "test"):
        cache = Source(settings, split, teacher, denoiser, device, rule).cache()
        if cache is None:
            print("error: targets.cache is null, so there is nothing to fill; name a folder", file=sys.stderr)
            sys.exit(2)
        make_targets(settings, split, teacher, denoiser, None, device, TargetProgress(), rule)
        console().print(
            f"{split}: {settings.count(split)} reference trajectories; {cache.size() / 1e6:.1f} MB in {cache.folder}",
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
