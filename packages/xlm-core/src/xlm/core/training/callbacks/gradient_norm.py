"""Logs the total gradient norm (opt-in)."""

import lightning
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from xlm.core.training.harness import Harness


class GradientNorm(Callback):
    """Logs ``train/gradient_norm``, before clipping, whenever metrics are logged."""

    @override
    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Harness)
        pl_module.logs_gradient_norm = True
