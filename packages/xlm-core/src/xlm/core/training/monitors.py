"""Monitored metrics before training, their charts in TensorBoard, and its HPARAMS after training."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from xlm.core.config.errors import XLMError
from xlm.core.training.harness import Harness


def check_monitors(trainer: lightning.Trainer, harness: Harness, training_metrics: Iterable[str]) -> None:
    """Reject a callback that monitors a metric which the run does not produce.

    Args:
        trainer: With its callbacks. A callback of the user may log unknown metrics; then nothing is
            rejected.
        harness: With its metrics.
        training_metrics: From :func:`xlm.core.training.slot_checks.check_slots`.

    Raises:
        XLMError: If there is no such metric; lists the closest names.
    """
    callbacks = cast("list[Callback]", trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
    known = harness.evaluation.names("val")
    if trainer.limit_val_batches == 0 or known is None or not all(map(_is_known, callbacks)):
        return
    known |= set(training_metrics)
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in known:
            close = difflib.get_close_matches(str(monitor), sorted(known), n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(close)}? " if close else ""
            raise XLMError(
                f"monitor={monitor}: the run has no such metric, which "
                f"{type(callback).__qualname__} monitors. {hint}Known: {', '.join(sorted(known))}"
            )


def draw_together(loggers: Iterable[Logger], names: Iterable[str]) -> None:
    """Draw each training metric and its namesake on every validation loader in one chart.

    The charts are on TensorBoard's page CUSTOM SCALARS.

    Args:
        loggers: Loggers other than TensorBoard are ignored.
        names: Training metrics, such as ``train/loss``.
    """
    last = sorted(name.removeprefix("train/") for name in names)
    charts = {
        name: ["Multiline", [f"^train/{re.escape(name)}$", f"^val/[^/]+/{re.escape(name)}$"]] for name in last
    }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars({"training and validation": charts})


def log_outcome(trainer: lightning.Trainer, settings: dict[str, Any], metrics: Mapping[str, float]) -> None:
    """Show the run in TensorBoard's tab HPARAMS, by its settings and final metrics.

    Other loggers show runs by the last logged metrics.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings, dict(metrics), trainer.global_step)


def _is_known(callback: Callback) -> bool:
    return type(callback).__module__.partition(".")[0] in ("xlm", "lightning")
