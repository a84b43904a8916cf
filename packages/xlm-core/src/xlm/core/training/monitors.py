"""Figures that callbacks wait for, asked before training, and those that runs are told apart by, after it."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from xlm.core.config.errors import XLMError
from xlm.core.training.harness import Harness


def check_monitors(trainer: lightning.Trainer, harness: Harness, training_figures: Iterable[str]) -> None:
    """Refuse a callback that waits for a figure which the run will not produce.

    Args:
        trainer: With its callbacks. One of the user's own may log figures that nobody else knows; then
            nothing is refused.
        harness: With its metrics.
        training_figures: Of :func:`xlm.core.training.slot_checks.check_slots`.

    Raises:
        XLMError: With the closest names.
    """
    callbacks = cast("list[Callback]", trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]  # set by a connector
    known = harness.evaluation.names("val")
    if trainer.limit_val_batches == 0 or known is None or not all(map(_is_known, callbacks)):
        return
    known |= set(training_figures)
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in known:
            close = difflib.get_close_matches(str(monitor), sorted(known), n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(close)}? " if close else ""
            raise XLMError(
                f"monitor={monitor}: the run has no such figure, for which "
                f"{type(callback).__qualname__} waits. {hint}Known: {', '.join(sorted(known))}"
            )


def log_outcome(trainer: lightning.Trainer, settings: dict[str, Any], figures: Mapping[str, float]) -> None:
    """Show the run in TensorBoard's tab HPARAMS, by its settings and its final figures.

    Other loggers show runs by what was logged last.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings, dict(figures), trainer.global_step)


def _is_known(callback: Callback) -> bool:
    return type(callback).__module__.partition(".")[0] in ("xlm", "lightning")
