"""Fill the cache of reference trajectories ahead of training; takes the same choices and overrides as `train`.

    solverdistill make-targets model=edm_digits targets.train_samples=4096
    solverdistill make-targets model=mixture targets=dopri5 targets.cache=/a/shared/folder

Interrupted, it goes on where it was when started again; several may run at once and share the work. The student matters
where the reference measures itself (`targets=auto`), which is then as exact as that student needs, or is nested in its
grid.
"""

from __future__ import annotations

import sys
from typing import Any

from solverdistill.commands.entry import command


@command("train", log_to="stdout")
def main(config: dict[str, Any]) -> None:
    """Solve what the cache does not have of every split, and say where it lies."""
    from solverdistill.references.targets import Source, make_targets
    from solverdistill.support.progress import TargetProgress, console
    from solverdistill.training.configuration import Run
    from solverdistill.training.run import asked_settings
    from solverdistill.training.trainer import device_of

    run = Run.of(config, asked=asked_settings(config))
    if run.targets.cache is None:
        print("error: targets.cache is null, so there is nothing to fill; name a folder", file=sys.stderr)
        sys.exit(2)
    device = device_of(config["trainer"])
    run.denoiser.to(device)
    data = run.data(run.student, device, TargetProgress())
    console().print(data.choice.summary(), soft_wrap=True)
    data.look_for_room("train", "validation", "test")
    settings, teacher, denoiser, rule = data.settings, data.teacher, data.denoiser, data.rule
    for split in ("train", "validation", "test"):
        cache = Source(settings, split, teacher, denoiser, device, rule, data.described).cache()
        assert cache is not None
        make_targets(settings, split, teacher, denoiser, None, device, TargetProgress(), rule, described=data.described)
        console().print(
            f"{split}: {settings.count(split)} reference trajectories; {cache.size() / 1e6:.1f} MB in {cache.folder}",
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
