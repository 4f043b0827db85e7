"""The Lightning trainer of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from solverdistill.fits.protocol import Fit
from solverdistill.support.instantiate import instantiate
from solverdistill.support.type_checks import check_range
from solverdistill.training.isolation import quiet_lightning
from solverdistill.training.progress_bar import progress_bar
from solverdistill.training.recording import last_checkpoint, make_loggers

FEWEST_LIMIT = 16  # processes that any machine may be asked for, as the tests of a small one are


def make_trainer(config: Mapping[str, Any], fit: Fit | None, output: Path) -> Trainer:
    """Build the trainer of a configuration: one epoch of training steps, validated now and then.

    Args:
        config: The configuration, as plain containers.
        fit: The fit with an optimizer; None where there is none, and the trainer is there for devices and logs alone.
        output: Folder of the run.
    """
    check_devices(config["trainer"].get("devices", 1))
    callbacks: list[Callback] = [last_checkpoint(output)]
    if config["trainer"].get("enable_progress_bar", True):
        callbacks.append(progress_bar())
    own = {
        "logger": make_loggers(config["logger"], config["run_name"], output, config),
        "callbacks": callbacks,
        "default_root_dir": str(output),
    }
    return instantiate({**config["trainer"], **own, **steps_of(fit)}, "trainer")


def check_devices(devices: Any) -> None:
    """Refuse more processes than any machine of this size runs; of accelerators Lightning counts what there is.

    Raises:
        ValueError: there are more; the message says how many would do.
    """
    most = max(FEWEST_LIMIT, os.cpu_count() or 1, torch.cuda.device_count())
    number = int(devices) if isinstance(devices, str) and devices.isdigit() else devices
    check_range("trainer.devices", number if isinstance(number, int) else None, most=most)


def quiet_trainer(fit: Fit, device: str, progress: bool) -> Trainer:
    """A trainer on one device that writes nothing."""
    kind, _, index = device.partition(":")
    devices: Any = [int(index)] if index else 1
    callbacks: list[Callback] = [progress_bar()] if progress else []
    own = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": progress, "callbacks": callbacks}
    accelerator = {"cuda": "gpu"}.get(kind, kind)
    return Trainer(accelerator=accelerator, devices=devices, **own, **steps_of(fit))


def device_of(config: Mapping[str, Any]) -> torch.device:
    """The device that a trainer's configuration means, for work without a trainer."""
    one = {"devices": 1, "logger": False, "enable_checkpointing": False}
    with quiet_lightning():
        trainer = instantiate({"_target_": config["_target_"], "accelerator": config["accelerator"], **one}, "trainer")
        return trainer.strategy.root_device


def steps_of(fit: Fit | None) -> dict[str, Any]:
    """Settings of a trainer that follow from those of its fit."""
    return {
        "max_epochs": 1,
        "val_check_interval": getattr(fit, "interval", 1),
        "num_sanity_val_steps": -1,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
