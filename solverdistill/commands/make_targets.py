"""Fill the cache of reference trajectories ahead of training; takes the same choices and overrides as `train`.

    solverdistill make-targets model=edm_digits targets.train_samples=4096
    solverdistill make-targets model=mixture targets=dopri5 targets.cache=/a/shared/folder

Interrupted, it goes on where it was when started again; several may run at once and share the work. The student does
not matter, unless the reference is nested in its grid.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from solverdistill.commands.entry import command


@command("train", log_to="stdout")
def main(config: DictConfig) -> None:
    """Solve what the cache does not have of every split, and say where it lies."""
    from lightning import Trainer

    from solverdistill.denoisers.guidance import make_guided
    from solverdistill.references.solving import Reference
    from solverdistill.references.targets import Source, TargetSettings, make_targets
    from solverdistill.support.progress import TargetProgress, console
    from solverdistill.training.configuration import check_config, make_student, plain

    check_config(config)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices and tips
    options: Any = OmegaConf.to_container(config.targets, resolve=True)
    settings = TargetSettings(**{**options, "reference": Reference(**options["reference"])})
    teacher = hydra.utils.instantiate(config.model)
    teacher, denoiser = make_guided(teacher, plain(config.guidance))
    rule = None if settings.reference.nested is None else make_student(config.solver, teacher).rule
    trainer = Trainer(accelerator=config.trainer.accelerator, devices=1, logger=False, enable_checkpointing=False)
    device = trainer.strategy.root_device
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
