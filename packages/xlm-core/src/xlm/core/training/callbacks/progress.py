"""Lightning's rich progress bar, in optimizer steps: training reads one endless stream and may be resumed."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

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
