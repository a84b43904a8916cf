"""Lightning's rich progress bar, without the epoch: training reads one endless stream."""

import lightning
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override


class TrainingProgress(RichProgressBar):
    """Shows steps done, time left and the loss."""

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        return "training"

    @override
    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
