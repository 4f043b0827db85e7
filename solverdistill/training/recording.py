"""What a run keeps while it trains: checkpoints and logs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from solverdistill.fits.report import FitReport
from solverdistill.support.files import expand


def last_checkpoint(output: Path) -> ModelCheckpoint:
    """Keep checkpoints/last.ckpt, written after each validation.

    Counting training steps would count optimizer steps, of which there can be several.
    """
    folder = output / "checkpoints"
    return ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=False)


def find_checkpoint(wanted: str | None, output: Path) -> str | None:
    """Resolve `ckpt_path`; `last` is the newest checkpoint among the sibling folders of this run.

    Raises:
        FileNotFoundError: there is none.
    """
    if wanted is None:
        return None
    if wanted == "last":
        found = sorted(output.parent.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise FileNotFoundError(f"ckpt_path=last: no run in {output.parent} has a checkpoint yet")
        return str(found[-1])
    if not Path(wanted).is_file():
        raise FileNotFoundError(f"checkpoint {wanted} (ckpt_path) does not exist")
    return wanted


def read_checkpoint(path: str) -> dict[str, Any]:
    """What a checkpoint of a run holds, on the host.

    Raises:
        ValueError: the file is none; the message says why.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(stored, dict) and isinstance(stored.get("family"), dict):
            return stored
        why = "it holds no student"
    except Exception as error:  # a file of any kind fails in its own way
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    raise ValueError(f"ckpt_path={path} is no checkpoint of a run: {why}")


def make_loggers(options: Mapping[str, Any], run_name: str, output: Path, config: Any) -> list[Logger]:
    """Loggers of a run: csv always; wandb offline, online or off.

    Args:
        options: `wandb` (off, offline or online) and `project`.
        run_name: Name of the run at wandb.
        output: Folder of the run.
        config: The whole configuration, kept by wandb.
    """
    loggers: list[Logger] = [CSVLogger(output, name="", version="training")]
    mode = options["wandb"]
    if mode not in ("off", "offline", "online"):
        raise ValueError(f"logger.wandb must be off, offline or online, not {mode!r}")
    if mode != "off":
        from lightning.pytorch.loggers import WandbLogger

        expand("~")  # wandb keeps its own settings there, and would say so after the fits
        if mode == "offline":
            os.environ.setdefault("WANDB_SILENT", "true")
        logger = WandbLogger(
            name=run_name,
            project=options["project"],
            save_dir=str(output),
            offline=mode == "offline",
            config=config,
            settings={"silent": True, "console": "off"} if mode == "offline" else None,
        )
        # Lightning passes wandb an argument that does nothing any more and that wandb warns of, whatever its value.
        vars(logger).get("_wandb_init", {}).pop("anonymous", None)
        loggers.append(logger)
    return loggers


def log_fit(trainer: Trainer, report: FitReport) -> None:
    """Write the history of a fit without training steps to the training log, one step per state that it kept."""
    for logger in trainer.loggers:
        for step, point in enumerate(report.history):
            values = {"rmse": point.rmse, "evaluations": float(point.evaluations), "seconds": point.seconds}
            logger.log_metrics({f"{report.fit}/{name}": value for name, value in values.items()}, step=step)
        logger.save()
