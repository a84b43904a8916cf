"""One line per validation, so that a log without a progress bar shows the course of the run."""

import time

import lightning
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from xlm.core.config.console import make_console


class ValidationReport(Callback):
    """Prints the step, the time since the start of training, and the main metrics of each validation.

    Args:
        metrics: Suffixes of the names of the metrics to print.
    """

    def __init__(
        self, metrics: tuple[str, ...] = ("loss", "nll_per_token", "exact_match", "token_accuracy")
    ) -> None:
        self.metrics = tuple(metrics)
        self._start = time.monotonic()

    @override
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = time.monotonic()

    @override
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        metrics = [
            f"{name.removeprefix('val/')} {float(value):.4g}"
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/") and name.rsplit("/", 1)[-1] in self.metrics
        ]
        seconds = time.monotonic() - self._start
        line = f"step {trainer.global_step}  {seconds:.0f} s  " + "  ".join(metrics)
        make_console().print(line)
