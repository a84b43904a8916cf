"""Tokens and steps per second, without a synchronisation of its own.

Lightning's monitor synchronises a GPU after each batch, and counts padding.
"""

import time
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops, measure_flops
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from xlm.core.config.console import make_console
from xlm.core.data import LoadedBatch
from xlm.core.training.harness import Harness

PASSES = 3
"""Cost of a training step in forward passes: the backward pass counts twice."""


class Throughput(Callback):
    """Logs ``throughput/tokens_per_second`` and ``throughput/steps_per_second`` of all processes.

    Tokens are those of the examples, without padding. Time is measured when metrics are logged, which
    synchronises with the device anyway; validation is excluded. ``throughput/flops_utilisation`` is the
    fraction of the devices' peak used by the matrix products of the network, counted in one forward pass of
    the first batch. If Lightning has no peak for the device, as on a CPU, it is omitted, and a note at the
    start of training says so.
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._step = 0
        self._start = 0.0
        self._paused = 0.0
        self._peak: int | None = None
        self._flops_per_token = 0.0

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        precision = str(trainer.precision)
        dtype = (
            torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
        )
        self._peak = get_available_flops(pl_module.device, dtype)
        if self._peak is None and trainer.is_global_zero:
            make_console().print(
                f"throughput: no flops_utilisation, since the peak of {_name(pl_module.device)} is unknown"
            )
        self._begin(trainer)

    @override
    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: LoadedBatch[Any],
        batch_idx: int,
    ) -> None:
        if self._peak is None or self._flops_per_token > 0:
            return
        assert isinstance(pl_module, Harness)
        slots = pl_module.slots
        with torch.no_grad():  # uncompiled, since compiled operations are not counted
            flops = measure_flops(slots.model, lambda: slots.loss(slots.model, batch.batch).loss_sum)
        self._flops_per_token = PASSES * flops / max(batch.num_tokens, 1)
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
            rates = self._rates(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(rates, step=trainer.global_step - 1)
        self._begin(trainer)

    def _rates(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        tokens_per_second = self._num_tokens * trainer.world_size / seconds
        rates = {
            "throughput/tokens_per_second": tokens_per_second,
            "throughput/steps_per_second": (trainer.global_step - self._step) / seconds,
        }
        if self._peak is not None:
            used = self._flops_per_token * tokens_per_second
            rates["throughput/flops_utilisation"] = used / (self._peak * trainer.world_size)
        return rates

    def _begin(self, trainer: lightning.Trainer) -> None:
        self._num_tokens = 0
        self._step = trainer.global_step
        self._start = time.perf_counter()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type}"
