"""The course of a training: Lightning's rich progress bar in optimizer steps, and a line per validation."""

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from xlm.core.config.console import make_console
from xlm.core.training.harness import Harness


class TrainingProgress(RichProgressBar):
    """Shows steps done, time left and the loss of the previous step, which needs no synchronisation."""

    @property
    @override
    def total_train_batches(self) -> int:
        return self.trainer.max_steps

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.is_enabled:
            # Set before the first update, so that steps of an earlier process do not enter the speed.
            self._initialize_train_progress_bar_id()
            self.train_progress_bar.completed = trainer.global_step

    @override
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        return "training"

    @override
    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        assert isinstance(pl_module, Harness)
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if pl_module.last_loss is not None:
            metrics["train/loss"] = pl_module.last_loss
        return metrics


class ValidationReport(Callback):
    """Prints the step, the time since the start of training, and the main metrics of each validation.

    Args:
        metrics: Suffixes of the names of the metrics to print.
    """

    def __init__(
        self, metrics: tuple[str, ...] = ("loss", "nll_per_token", "exact_match", "token_accuracy")
    ) -> None:
        self.metrics = tuple(metrics)
        self._start = time.monotonic()

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = time.monotonic()

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        metrics = [
            f"{name.removeprefix('val/')} {float(value):.4g}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/") and name.rsplit("/", 1)[-1] in self.metrics
        ]
        seconds = time.monotonic() - self._start
        line = f"step {trainer.global_step}  {seconds:.0f} s  " + "  ".join(metrics)
        make_console().print(line)
