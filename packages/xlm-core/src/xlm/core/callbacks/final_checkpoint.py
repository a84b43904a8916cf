"""A checkpoint of the very last step, wherever the interval of the others ends."""

import lightning
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


class FinalCheckpoint(Callback):
    """Saves when the training stream ends, before any callback swaps in averaged weights.

    Args:
        path: The file; the same as that of the regular checkpoints, so that it replaces them.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @override
    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
