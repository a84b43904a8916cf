"""An exponential moving average of the weights, in float32 and without a sync per step.

Lightning's callback synchronises with the device after each step, averages in the precision of the weights
(in bfloat16 a decay of 0.9999 changes nothing), and swaps both sets of weights for each validation, which
rounds the average. This one keeps its hooks and its checkpoint layout.
"""

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from xlm.core.config.console import make_console
from xlm.core.config.errors import XLMError
from xlm.core.saving.sharded_state import copy_weights, is_sharded, put_whole_state, whole_state
from xlm.core.training.sharding import FSDP2, release, shard


class EMA(WeightAveraging):
    """Averages after each optimizer step; validation, test, generation and export use the average.

    A checkpoint holds the average as ``state_dict`` and the trained weights as ``current_model_state``. A
    checkpoint that was trained without it can be resumed with it: the average then starts there.

    Args:
        decay: Weight of the old average in each step, after the warm-up.
        warmup: The decay at update k is at most (1 + k) / (warmup + k); 0 for none.
        device: Device of the average; by default that of the network.
    """

    def __init__(self, *, decay: float = 0.9999, warmup: float = 10, device: str | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and less than 1")
        if warmup < 0:
            raise ValueError(f"warmup is {warmup}; it must not be negative")
        super().__init__(device=device, use_buffers=False)
        self.decay = decay
        self.warmup = warmup
        self._num_updates = 0
        self._trained: list[Tensor] | None = None

    def decay_at(self, update: int) -> float:
        """The decay of the given update, counted from 0."""
        if self.warmup + update == 0:
            return self.decay
        return min(self.decay, (1 + update) / (self.warmup + update))

    @override
    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # Only the network: a copy of the whole module would include tokenizer, metrics and compiled code.
        network = nn.ModuleDict({"model": pl_module.get_submodule("model")})
        # The module is not on its device yet.
        self._average_model = AveragedModel(network, device=self._device or trainer.strategy.root_device)
        for parameter in self._average_model.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.float()
        if pl_module.device_mesh is not None:
            if not isinstance(trainer.strategy, FSDP2) or trainer.strategy.writes_folders:
                raise XLMError(
                    "callbacks.ema: sharded weights can only be averaged with +trainer/strategy=fsdp2 and "
                    "trainer.strategy.save_distributed_checkpoint=false"
                )
            shard(self._average.get_submodule("model"), pl_module.device_mesh)

    @override
    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step <= self._latest_update_step:
            return
        average, trained = self._average, pl_module.get_submodule("model")
        means: list[Tensor] = list(average.parameters())
        values = [
            value.detach().to(device=mean.device, dtype=mean.dtype, non_blocking=True)
            for mean, value in zip(means, trained.parameters(), strict=True)
        ]
        torch._foreach_lerp_(means, values, 1 - self.decay_at(self._num_updates))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]  # used by torch's own averaging; it has no public name
        for mean, value in zip(average.buffers(), trained.buffers(), strict=True):
            mean.copy_(value)
        self._num_updates += 1
        self._latest_update_step = trainer.global_step

    @override
    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if self._average_model is not None:
            self._trained = [value.detach().clone() for value in pl_module.parameters()]
            self._copy_average_to_current(pl_module)

    @override
    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._put_back(pl_module)

    @override
    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._put_back(pl_module)

    @override
    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None and is_sharded(pl_module):
            checkpoint["state_dict"] = whole_state(self._average)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "num_updates": self._num_updates}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._num_updates = state_dict["num_updates"]

    @override
    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        has_average = "current_model_state" in checkpoint
        if self._average_model is not None and is_sharded(pl_module):
            # Lightning has loaded `state_dict` into the network before.
            copy_weights(pl_module.get_submodule("model"), self._average)
            if has_average:
                put_whole_state(pl_module, checkpoint["current_model_state"])
                return
        if self._average_model is not None and not has_average:
            if "state_dict" in checkpoint:
                self._average.load_state_dict(checkpoint["state_dict"])
            self._latest_update_step = checkpoint["global_step"]
            if trainer.is_global_zero:
                make_console().print(
                    "The checkpoint has no averaged weights: the average starts from its weights."
                )
            return
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @property
    def _average(self) -> nn.Module:
        assert self._average_model is not None
        return self._average_model.module

    def _put_back(self, pl_module: lightning.LightningModule) -> None:
        release(pl_module)
        trained, self._trained = self._trained, None
        if trained is not None:
            for parameter, value in zip(pl_module.parameters(), trained, strict=True):
                parameter.data.copy_(value)
