"""Callbacks that bring accidents to a training: kills, signals, errors, NaN."""

import os
import resource
import shutil
import signal
import threading
from pathlib import Path
from typing import Any, BinaryIO

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


class SignalAt(Callback):
    """Sends this process a signal at the given micro-batch (after its gradients, before any later step)."""

    def __init__(self, *, batch: int, name: str = "SIGKILL", times: int = 1, moment: str = "train") -> None:
        self.batch = batch
        self.signal = signal.Signals[name]
        self.times = times
        self.moment = moment

    def _send(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.signal)

    @override
    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.moment == "train" and batch_idx == self.batch:
            self._send()

    @override
    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.moment == "validation" and trainer.fit_loop.total_batch_idx + 1 >= self.batch:
            self._send()


class KillSoon(Callback):
    """Lets this process die by SIGKILL some time after the beginning of the given micro-batch."""

    def __init__(self, *, batch: int, seconds: float) -> None:
        self.batch = batch
        self.seconds = seconds

    @override
    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


class KillInSave(Callback):
    """Dies by SIGKILL when half of the first checkpoint from the given step on is written.

    Of one that is a folder, the file beside the shards.
    """

    def __init__(self, *, step: int) -> None:
        self.step = step

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        whole_save = torch.save

        def half_save(content: object, path: Path | BinaryIO) -> None:
            whole_save(content, path)
            # A shard is a stream, into which each tensor is written by a call of its own.
            if trainer.global_step >= self.step and isinstance(path, Path):
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half_save  # the process ends with it


class FaultAt(Callback):
    """Brings a fault of the machine at the given micro-batch.

    Args:
        batch: The micro-batch.
        kind: "memory": the step has no memory. "deleted": the run's folder goes. "limit": no file may become
            larger than a KiB. "killed": the second process of two is killed.
    """

    def __init__(self, *, batch: int, kind: str) -> None:
        self.batch = batch
        self.kind = kind

    @override
    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx != self.batch:
            return
        if self.kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self.kind == "deleted":
            shutil.rmtree(trainer.default_root_dir)
        if self.kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        if self.kind == "killed" and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class FailAt(Callback):
    """Raises at the given micro-batch. Takes notes, which stand in the config."""

    def __init__(self, *, batch: int, **notes: object) -> None:
        self.batch = batch
        self.notes = notes

    @override
    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            raise RuntimeError("the toy broke")


class FailInTest(Callback):
    """Raises at the second batch of the test split in the process that the environment names.

    So the config is that of the evaluation that continues.
    """

    @override
    def on_test_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 1 and os.environ.get("TOY_FAILS") == str(trainer.global_rank):
            raise RuntimeError("the toy broke")
