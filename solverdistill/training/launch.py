"""What several processes of one run must agree on before hydra starts, and which combinations are refused."""

from __future__ import annotations

import os
import tempfile
from typing import Any


def other_rank_arguments() -> list[str]:
    """Hydra overrides for the processes after the first under torchrun or srun: no output folder of their own.

    Each process composes its own configuration there, and with the time in the folder's name every process would make
    another one. The first process alone writes; what the others' hydra insists on goes to a temporary folder.
    """
    rank = os.environ.get("RANK") if "TORCHELASTIC_RUN_ID" in os.environ else os.environ.get("SLURM_PROCID")
    if rank in (None, "0") or "SUBMITIT_EXECUTOR" in os.environ:
        return []
    folder = tempfile.mkdtemp(prefix="solverdistill-rank-")
    return ["hydra.output_subdir=null", f"hydra.run.dir={folder}", "hydra/job_logging=none"]


def refuse_sweep_of_subprocesses(trainer: Any, sweeping: bool) -> None:
    """Refuse `-m` with processes that Lightning starts itself: each of them would rerun the whole sweep.

    Raises:
        ValueError: always in that combination; the message says what to do instead.
    """
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    if sweeping and trainer.num_devices > 1 and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        raise ValueError(
            "a sweep (-m) with trainer=ddp would rerun the whole sweep in every process; sweep with one process per "
            "job (trainer=default), or let the cluster start the processes (hydra/launcher=submitit_slurm)"
        )


def start_processes(trainer: Any, required: bool) -> None:
    """Start the processes of a distributed trainer now, so that what comes before `trainer.fit` is shared work.

    Args:
        trainer: The trainer.
        required: Whether something comes before it that all processes have to take part in.
    Raises:
        ValueError: they are required, and the trainer's processes only live within `trainer.fit`.
    """
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    launcher = trainer.strategy.launcher
    if launcher is None or not isinstance(trainer.strategy, DDPStrategy):
        return
    if not isinstance(launcher, _SubprocessScriptLauncher):
        if not required:
            return
        name = getattr(trainer.strategy, "strategy_name", "ddp")
        raise ValueError(
            f"trainer.strategy={name} starts processes that only gradient descent can use; take trainer=ddp, or "
            "fit=gradient alone"
        )
    launcher.launch(lambda: None)
    trainer.strategy.setup_environment()
