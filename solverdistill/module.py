"""The Lightning module: holds a student's params, steps an optimizer, keeps the best state; nothing numerical."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from solverdistill.denoiser import Checkpointed
from solverdistill.families.base import Family, Params
from solverdistill.objectives import Batch, PublishedEPD, Trajectory
from solverdistill.program import sample
from solverdistill.trajectories import rmse

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]


class SolverDistillation(LightningModule):
    """Fit a family's params by gradient descent, one backward pass per roll-out.

    The teacher is not part of the module: checkpoints hold the params, the best params and the optimizer alone.

    Args:
        family: The student.
        denoiser: The frozen, possibly guided teacher.
        objective: Loss of (program, denoiser, batch).
        optimizer: Makes the optimizer from the params.
        scheduler: Makes a learning-rate scheduler, stepped once per training step.
        seed: Seed of the initial params.
        checkpointing: Recompute the network in the backward pass, so that one network graph is in memory at a time.
    """

    def __init__(
        self,
        family: Family,
        denoiser: Any,
        objective: Trajectory | PublishedEPD,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        seed: int = 0,
        checkpointing: bool = True,
    ) -> None:
        super().__init__()
        initial = family.init(seed)
        if not initial:
            raise ValueError(f"{family.name} has no params to train; evaluate it as a classical solver instead")
        self.family, self.objective, self.seed = family, objective, seed
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        # Kept out of the module tree: checkpoints and DDP must not see the teacher.
        self.__dict__["denoiser"] = Checkpointed(denoiser) if checkpointing else denoiser
        self.params = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in initial.items()})
        self.best_params: Params = self.current_params()
        self.best_rmse = float("inf")

    def current_params(self) -> Params:
        """A copy of the params as they are now, on the host."""
        return {name: value.detach().cpu().clone() for name, value in self.params.items()}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = self.objective(self.family, dict(self.params), self.denoiser, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=batch.noise.shape[0])
        return loss

    def on_validation_epoch_start(self) -> None:
        self._errors: list[Tensor] = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        program = self.family.program(dict(self.params)).detach()
        self._errors.append(rmse(sample(program, self.denoiser, batch.noise, batch.cond), batch.end))

    def on_validation_epoch_end(self) -> None:
        errors = torch.cat(self._errors)
        error = float(errors.mean())
        self.log("validation/rmse", error, prog_bar=True)
        self.log("validation/rmse_median", float(errors.median()))
        if not self.trainer.sanity_checking and error < self.best_rmse:
            self.best_rmse, self.best_params = error, self.current_params()

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.params.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["best"] = {"rmse": self.best_rmse, "params": self.best_params}
        checkpoint["family"] = self.family.hyperparameters()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("family") != self.family.hyperparameters():
            raise ValueError("the checkpoint belongs to another student: its family or hyperparameters differ")
        self.best_rmse, self.best_params = checkpoint["best"]["rmse"], checkpoint["best"]["params"]


class PublishedEPDDistillation(SolverDistillation):
    """The published EPD schedule: an optimizer step after the loss of every solver step, inside the roll-out.

    Gradients that are not a number become 0 and infinite ones +-1e5, as in the published code.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert isinstance(self.objective, PublishedEPD)
        losses = self.objective.steps(self.family, lambda: dict(self.params), self.denoiser, batch)
        for step in losses:
            self.log(f"train/loss_step{step.step}", step.loss.detach(), batch_size=batch.noise.shape[0])
            if step.back_propagated:
                optimizer.zero_grad()
                self.manual_backward(step.loss, retain_graph=True)
                for value in self.params.parameters():
                    if value.grad is not None:
                        torch.nan_to_num(value.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=value.grad)
                optimizer.step()
        scheduler = self.lr_schedulers()
        if scheduler is not None:
            scheduler.step()
