"""Lightning's rich progress bar, without the epoch: training reads one endless stream."""

import lightning
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

from xlm.core.harness import Harness


class TrainingProgress(RichProgressBar):
    """Shows steps done, time left and the loss of the step before, which is on the host already."""

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
