"""Callbacks that Lightning lacks."""

from xlm.core.callbacks.final_checkpoint import FinalCheckpoint
from xlm.core.callbacks.progress import TrainingProgress
from xlm.core.callbacks.validation_report import ValidationReport

__all__ = ["FinalCheckpoint", "TrainingProgress", "ValidationReport"]
