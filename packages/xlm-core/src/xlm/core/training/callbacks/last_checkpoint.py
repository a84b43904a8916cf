"""The checkpoint from which a run resumes: written every few steps, at the end, and at an interruption."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from xlm.core.config.console import make_console
from xlm.core.config.errors import XLMError
from xlm.core.config.machine import explained
from xlm.core.training.harness import Harness
from xlm.core.training.sharding import release


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt``, and keeps the previous one as ``previous.ckpt``.

    Args:
        path: The file.
        every_n_steps: Optimizer steps between two checkpoints.
        on_exception: Whether to write one when an error or a signal stops the training.
    """

    def __init__(self, path: str, *, every_n_steps: int, on_exception: bool = True) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        self.path = Path(path)
        self.every_n_steps = every_n_steps
        self.saves_on_exception = on_exception
        self._saved_step = 0
        self._has_begun = False

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._saved_step = trainer.global_step
        self._has_begun = True

    @override
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        # The last step is saved after its validation; otherwise a run killed in between would lack it.
        if step != self._saved_step and step % self.every_n_steps == 0 and step < trainer.max_steps:
            self._save(trainer)

    @override
    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # End of the stream, before averaged weights replace the trained ones.
        self._save(trainer)

    @override
    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        # A rejected resume has restored the step, but nothing else that could be saved.
        if not self._has_begun:
            return
        if not self.saves_on_exception or (not trainer.training and not trainer.validating):
            return
        reason = self._why_not(trainer, pl_module, exception)
        if reason is None:
            release(pl_module)
            reason = self._try_to_save(trainer)
        if reason is None:
            message = f"step {self._saved_step} is in {self.path}; the same command resumes from there"
        else:
            message = f"no checkpoint of step {trainer.global_step}: {reason}"
        if trainer.is_global_zero:
            make_console(stderr=True).print(f"Training was stopped: {message}.")

    def _why_not(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> str | None:
        assert isinstance(pl_module, Harness)
        if trainer.global_step == 0:
            return "no step was done yet"
        if not pl_module.between_steps:
            return "the weights were being changed; the previous checkpoint remains"
        if getattr(exception, "poisons_weights", False):
            return "its weights are not finite; the previous checkpoint remains"
        if trainer.world_size > 1 and not isinstance(exception, XLMError):
            # The other processes do not observe the error: a collective operation would never end.
            return "one of several processes failed; the previous checkpoint remains"
        return None

    def _try_to_save(self, trainer: lightning.Trainer) -> str | None:
        """Write the checkpoint; returns the reason of a failure, else None."""
        try:
            self._save(trainer)
        except (OSError, RuntimeError) as error:
            failure = explained(error)
            return f"{failure or error} The previous checkpoint remains"
        return None

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved_step = trainer.global_step
