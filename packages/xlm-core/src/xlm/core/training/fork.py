"""A new run that starts from the state of another one with changed settings: ``from=runs/old``.

It starts with the weights, their average, the optimizer state, the step and the position in the data of the
old run's newest checkpoint. Learning rate, schedule and optimizer options are those of the new config, with
the schedule at the same step.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.optim.lr_scheduler import LRScheduler

from xlm.core.config.errors import XLMError
from xlm.core.saving.resume import Fits, Header
from xlm.core.saving.run_folder import RunFolder, differences
from xlm.core.training.loop_state import to_step_boundary
from xlm.core.training.run import Run

OF_EVERY_RUN = ("job_name", "job_type", "from", "hydra")
"""Keys whose difference is ignored."""
OF_THE_OLD_RUN = ("ModelCheckpoint", "EarlyStopping")
"""Callbacks whose state is reset: their best metric is that of the old run."""


@dataclass(frozen=True)
class Fork:
    """A run to start from.

    Args:
        folder: Folder of the old run.
        new: The new run.

    Raises:
        XLMError: If there is no such run, or it is the new run itself.
    """

    folder: Path
    new: Run

    def __post_init__(self) -> None:
        path = self.folder.expanduser()
        object.__setattr__(self, "folder", path)
        if path.resolve() == self.new.folder.expanduser().resolve():
            raise XLMError(f"from={path}: this is the run itself. Give the new one another job_name")
        if not path.is_dir():
            raise XLMError(
                f"from={path}: there is no such folder; it names the folder of a run: from=runs/NAME"
            )
        self._run.read_config()

    @property
    def _run(self) -> RunFolder:
        return RunFolder(self.folder)

    def find(self, fits: Fits) -> Header:
        """Find the checkpoint to start from.

        Raises:
            XLMError: If the old run has none that fits, or has done all steps of the new one.
        """
        header = self._run.last_checkpoint(fits).header
        if header is None:
            raise XLMError(f"from={self.folder}: no checkpoint in {self._run.checkpoints} fits this run")
        steps = self.new.settings.trainer.max_steps
        if header.step >= steps:
            raise XLMError(
                f"from={self.folder}: it is at step {header.step} of the {steps} "
                "that trainer.max_steps allows. Increase it; it includes the steps of the old run"
            )
        return header

    def describe(self, header: Header) -> dict[str, str]:
        """The start of the run and its differences from the old one, for its first lines."""
        lines = {"forked": f"from step {header.step}: {header.path}"}
        for key, old, new in differences(self._run.read_config(), self.new.record, OF_EVERY_RUN):
            lines[key] = f"{old!r} there, {new!r} here"
        return lines

    def adapt(self, checkpoint: dict[str, Any], trainer: lightning.Trainer) -> None:
        """Convert the counters of the old run's checkpoint to the new run's batches and validations."""
        step = checkpoint["global_step"]
        to_step_boundary(checkpoint, trainer, step, validated=True)
        # In place, since the data module may have received this mapping before.
        checkpoint["DataModule"]["batches_done"] = step * trainer.accumulate_grad_batches
        states = checkpoint.get("callbacks", {})
        checkpoint["callbacks"] = {
            name: state for name, state in states.items() if not name.startswith(OF_THE_OLD_RUN)
        }

    def apply_options(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        fresh_optimizer: torch.optim.Optimizer,
        fresh_scheduler: LRScheduler,
    ) -> None:
        """Set the new run's options in the restored optimizer and scheduler.

        Args:
            optimizer, scheduler: As restored; changed in place.
            fresh_optimizer, fresh_scheduler: Made from the new config; advanced to the same step.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
            for _ in range(scheduler.last_epoch):
                fresh_scheduler.step()
        for group, fresh in zip(optimizer.param_groups, fresh_optimizer.param_groups, strict=True):
            group.update(
                {name: value for name, value in fresh.items() if name not in ("params", "param_names")}
            )
        scheduler.load_state_dict(fresh_scheduler.state_dict())
