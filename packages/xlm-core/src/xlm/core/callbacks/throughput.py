"""Tokens and steps in a second, without asking the device to wait.

Lightning's monitor synchronises a GPU after each batch, and counts padding.
"""

import time
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from xlm.core.data import LoadedBatch

FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Two of the forward and four of the backward pass; attention's own products are left out."""


class Throughput(Callback):
    """Logs ``throughput/tokens_per_second`` and ``throughput/steps_per_second`` of all processes.

    Tokens are those of the examples, without padding. Time is taken when figures are logged, where the host
    waits for the device anyway; validation is left out. ``throughput/flops_utilisation``, the share of the
    device's peak that 6 operations for each parameter and token come to, is logged where the peak is known.
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._step = 0
        self._start = 0.0
        self._paused = 0.0

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begin(trainer)

    @override
    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._paused = time.perf_counter()

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start += time.perf_counter() - self._paused

    @override
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: LoadedBatch[Any],
        batch_idx: int,
    ) -> None:
        self._num_tokens += batch.num_tokens
        interval: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
        if trainer.global_step == self._step or trainer.global_step % interval:
            return
        if trainer.is_global_zero:
            figures = self._figures(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step - 1)
        self._begin(trainer)

    def _figures(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        tokens_per_second = self._num_tokens * trainer.world_size / seconds
        figures = {
            "throughput/tokens_per_second": tokens_per_second,
            "throughput/steps_per_second": (trainer.global_step - self._step) / seconds,
        }
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        peak = get_available_flops(pl_module.device, dtype)
        if peak is not None:
            parameters = sum(parameter.numel() for parameter in pl_module.parameters())
            used = FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens_per_second
            figures["throughput/flops_utilisation"] = used / (peak * trainer.world_size)
        return figures

    def _begin(self, trainer: lightning.Trainer) -> None:
        self._num_tokens = 0
        self._step = trainer.global_step
        self._start = time.perf_counter()
