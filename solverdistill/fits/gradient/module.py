"""The Lightning module: holds a student's params, steps an optimizer, keeps the best state; nothing numerical."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from solverdistill.denoisers.wrappers import Checkpointed, Counted
from solverdistill.families.base import Family, Params
from solverdistill.fits.batches import NO_SOLVER
from solverdistill.fits.gradient.ema import moving_average, restart
from solverdistill.fits.report import FitReport
from solverdistill.fits.spending import Spending
from solverdistill.objectives.distances import rmse
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.support.type_checks import check_fields, check_ranges

OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]
FAILURES = 10  # steps in a row that cannot be taken, after which a fit ends


@dataclass(frozen=True)
class FitSettings:
    """How gradient descent runs.

    Args:
        iterations: Training steps.
        batch_size: Samples per step, over all processes.
        validations: How often held-out samples are looked at.
        checkpointing: Recompute the network in the backward pass, so that one network graph is in memory at a time.
        ema: Decay of an exponential moving average of the params, which is then what is validated and exported; null
            for none.
        gradient_clip: Largest norm of the params' gradient; null for no limit.
        patience: Validations without a new best error after which the fit stops; null goes on to the end.
        rollback: A held-out error of this many times the best, or none at all, counts as divergence: the params go back
            to the best ones and the learning rates are halved. Null lets it diverge. A step whose gradient is not
            finite is never taken; the second in a row goes back in the same way, and the tenth ends the fit.
    """

    iterations: int = 300
    batch_size: int = 32
    validations: int = 10
    checkpointing: bool = False
    ema: float | None = None
    gradient_clip: float | None = None
    patience: int | None = None
    rollback: float | None = 10.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, "fit.", "iterations", "batch_size", "validations", "patience", least=1)
        check_ranges(self, "fit.", "rollback", above=1)
        check_ranges(self, "fit.", "gradient_clip", above=0)
        check_ranges(self, "fit.", "ema", least=0, below=1)

    @property
    def interval(self) -> int:
        """Training steps between validations."""
        return max(1, self.iterations // self.validations)


class SolverDistillation(LightningModule):
    """Fit a family's params by gradient descent, one backward pass per roll-out.

    The teacher is not part of the module: checkpoints hold the params, their average, the best params and the
    optimizer alone.

    Args:
        family: The student.
        denoiser: The frozen, possibly guided teacher.
        objective: Loss of (family, params, denoiser, batch).
        optimizer: Makes the optimizer from (name, param) pairs.
        fit: Length, averaging, clipping.
        scheduler: Makes a learning-rate scheduler, stepped once per training step.
        seed: Seed of the initial params.
        start: Params to start from; None for the family's own initial ones.
    """

    denoiser: Any

    def __init__(
        self,
        family: Family,
        denoiser: Any,
        objective: Any,
        optimizer: OptimizerFactory,
        fit: FitSettings,
        scheduler: SchedulerFactory | None = None,
        seed: int = 0,
        start: Params | None = None,
    ) -> None:
        super().__init__()
        initial = family.init(seed) if start is None else start
        if not initial:
            raise ValueError(f"{family.name} has no params to train; it is a classical solver")
        self.family, self.objective, self.fit, self.seed = family, objective, fit, seed
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        # Kept out of the module tree: checkpoints and DDP must not see the teacher.
        counted = Counted(denoiser)
        vars(self).update(counted=counted, denoiser=Checkpointed(counted) if fit.checkpointing else counted)
        self.spending = Spending(counted)
        self.params = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in initial.items()})
        self.ema = None if fit.ema is None else moving_average(self.params, fit.ema)
        self.best_params: Params = self.current_params()
        self.best_rmse = float("inf")
        self.rollbacks, self.idle = 0, 0
        self.failures, self.not_taken = 0, 0  # in a row, and in all

    def live_params(self) -> Params:
        """The params that the optimizer moves."""
        return dict(self.params.items())

    def current_params(self) -> Params:
        """A copy, on the host, of the params that would be exported now: their average where there is one."""
        values = self.params if self.ema is None else self.ema.module
        return {name: value.detach().cpu().clone() for name, value in values.named_parameters()}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """A step as `descend` takes it; none where the last one left params that are no solver."""
        try:
            return self.descend(batch, batch_idx)
        except NO_SOLVER:
            if not self._refused(self.live_params()):
                raise
            self._fail(1)
            if self._refused(self.live_params()):  # not even the best ones are one
                raise
        if not self.automatic_optimization:
            return None
        # Every process has the same params and comes here; a loss is what Lightning wants of all of them.
        return torch.stack([value.sum() for value in self.params.values()]).sum() * 0

    def descend(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of a batch; modules that optimize by hand take the step themselves."""
        loss = self.objective(self.family, self.live_params(), self.denoiser, batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=batch.noise.shape[0])
        return loss

    def backward(self, loss: Tensor, *args: Any, **options: Any) -> None:
        with self.spending.backward():
            super().backward(loss, *args, **options)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.spending.begin(self.device)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        gradients = [value.grad for value in self.params.values() if value.grad is not None]
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # it leaves such steps out itself
        if not scaled and not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self._fail(2)
            for value in self.params.values():
                value.grad = None  # which optimizers leave alone
        else:
            self.failures = 0
            if self.fit.gradient_clip is not None:
                nn.utils.clip_grad_norm_(self.params.parameters(), self.fit.gradient_clip)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in self.params.values()):
            self._fail(1)
        if self.ema is not None:
            self.ema.update_parameters(self.params)
        self.spending.end()

    def on_validation_epoch_start(self) -> None:
        self._errors: list[Tensor] = []
        self.spending.begin(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        params = self.current_params()
        if self._refused(params):
            self._errors.append(batch.end.new_full((len(batch.end),), torch.inf))
            return
        program = self.family.program(params)
        self._errors.append(rmse(sample(program, self.denoiser, batch.noise, batch.cond), batch.end))

    def on_validation_epoch_end(self) -> None:
        errors = torch.cat(self._errors)
        error = float(errors.mean())
        self.spending.end()
        self._judge(error)
        # Every process validates all held-out samples and finds the same numbers.
        self.log("validation/rmse", error, prog_bar=True, sync_dist=True)
        self.log("validation/rmse_median", float(errors.median()), sync_dist=True)

    def _judge(self, error: float) -> None:
        """Keep the best state, go back to it after a divergence, stop on a plateau."""
        fit, self.idle = self.fit, self.idle + 1
        if error < self.best_rmse:  # the initial state, which the sanity check sees, is a candidate too
            self.best_rmse, self.best_params, self.idle = error, self.current_params(), 0
        elif fit.rollback is not None and not error <= fit.rollback * self.best_rmse:
            if not self.trainer.sanity_checking:
                self._roll_back()
        self.spending.point(self.best_rmse)
        if fit.patience is not None and self.idle >= fit.patience:
            self.trainer.should_stop = True

    def _refused(self, params: Params) -> bool:
        """Whether params are not finite, or the family has no solver of them."""
        if not all(bool(torch.isfinite(value).all()) for value in params.values()):
            return True
        try:
            with torch.no_grad():
                self.family.program(params)
        except NO_SOLVER:
            return True
        return False

    def _fail(self, patience: int) -> None:
        """Note that a step could not be taken; go back to the best params after so many in a row."""
        self.failures, self.not_taken = self.failures + 1, self.not_taken + 1
        if self.failures >= patience:
            self._roll_back()
        if self.failures >= FAILURES:
            self.trainer.should_stop = True

    def _roll_back(self) -> None:
        """Go back to the best params with half the learning rates, forgetting the optimizer's moments."""
        self.rollbacks += 1
        for name, value in self.params.items():
            value.data.copy_(self.best_params[name])
        if self.ema is not None:
            restart(self.ema, self.params)
        optimizer = self.trainer.optimizers[0]
        for group in optimizer.param_groups:
            group["lr"] /= 2
            for value in group["params"]:
                optimizer.state.pop(value, None)
        for config in self.trainer.lr_scheduler_configs:
            if config.scheduler.optimizer is optimizer:
                config.scheduler.base_lrs = [rate / 2 for rate in config.scheduler.base_lrs]

    def report(self) -> FitReport:
        """What the fit did and what it cost so far."""
        plateau = self.fit.patience is not None and self.idle >= self.fit.patience
        notes = [f"rolled back {self.rollbacks} times"] if self.rollbacks else []
        if self.not_taken:
            notes.append(f"{self.not_taken} steps were not finite and not taken")
        failed = f"{FAILURES} steps in a row were not finite" if self.failures >= FAILURES else ""
        return self.spending.report(failed or ("plateau" if plateau else "all iterations done"), ", ".join(notes))

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.params.items())
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["best"] = {"rmse": self.best_rmse, "params": self.best_params}
        checkpoint["family"] = self.family.hyperparameters()
        spent = self.spending.state_dict()
        checkpoint["progress"] = {"rollbacks": self.rollbacks, "idle": self.idle, "spending": spent}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("family") != self.family.hyperparameters():
            raise ValueError("the checkpoint belongs to another student: its family or hyperparameters differ")
        self.best_rmse, self.best_params = checkpoint["best"]["rmse"], checkpoint["best"]["params"]
        progress = checkpoint["progress"]
        self.rollbacks, self.idle = progress["rollbacks"], progress["idle"]
        self.spending.load_state_dict(progress["spending"])
