"""Callbacks that Lightning lacks."""

from xlm.core.callbacks.ema import EMA
from xlm.core.callbacks.gradient_norm import GradientNorm
from xlm.core.callbacks.last_checkpoint import LastCheckpoint
from xlm.core.callbacks.progress import TrainingProgress
from xlm.core.callbacks.samples import Samples
from xlm.core.callbacks.throughput import Throughput
from xlm.core.callbacks.validation_report import ValidationReport

__all__ = [
    "EMA",
    "GradientNorm",
    "LastCheckpoint",
    "Samples",
    "Throughput",
    "TrainingProgress",
    "ValidationReport",
]
