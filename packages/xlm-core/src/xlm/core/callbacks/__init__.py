"""Callbacks that Lightning lacks."""

from xlm.core.callbacks.final_checkpoint import FinalCheckpoint
from xlm.core.callbacks.validation_report import ValidationReport

__all__ = ["FinalCheckpoint", "ValidationReport"]
