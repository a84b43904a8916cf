"""Callbacks that Lightning lacks."""

from xlm.core.callbacks.ema import EMA
from xlm.core.callbacks.last_checkpoint import LastCheckpoint
from xlm.core.callbacks.progress import TrainingProgress
from xlm.core.callbacks.validation_report import ValidationReport

__all__ = ["EMA", "LastCheckpoint", "TrainingProgress", "ValidationReport"]
