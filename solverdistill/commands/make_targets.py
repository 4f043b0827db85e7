"""Fill the cache of reference trajectories ahead of training; takes the same choices and overrides as train.py.

    python scripts/make_targets.py model=edm_digits targets.train_samples=4096
    python scripts/make_targets.py model=mixture targets=dopri5 targets.cache=/a/shared/folder

Interrupted, it goes on where it was when started again; several may run at once and share the work. The student does
not matter, unless the reference is nested in its grid.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from solverdistill.training.config_files import find_configs

# No output folder of its own: the cache is the output.
NO_FOLDER = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout")


@hydra.main(version_base="1.3", config_path=str(find_configs()), config_name="train")
def main(config: DictConfig) -> None:
    """Fill the cache; a mistake in the settings is told in one sentence."""
    from solverdistill.support.mistakes import say_and_exit

    try:
        fill(config)
    except Exception as error:
        say_and_exit(error)


def fill(config: DictConfig) -> None:
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
    from solverdistill.support.mistakes import say_and_exit

    os.environ.setdefault("SOLVERDISTILL_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then lets exceptions through, for one sentence instead of six lines
    sys.argv[1:1] = NO_FOLDER
    try:
        main()
    except Exception as error:
        say_and_exit(error)
