"""Callbacks that Lightning lacks."""

from xlm.core.callbacks.validation_report import ValidationReport

__all__ = ["ValidationReport"]
