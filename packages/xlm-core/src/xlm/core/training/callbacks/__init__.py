"""Callbacks that Lightning lacks."""

from xlm.core.training.callbacks.ema import EMA
from xlm.core.training.callbacks.gradient_norm import GradientNorm
from xlm.core.training.callbacks.last_checkpoint import LastCheckpoint
from xlm.core.training.callbacks.progress import TrainingProgress, ValidationReport
from xlm.core.training.callbacks.samples import Samples
from xlm.core.training.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "GradientNorm",
    "LastCheckpoint",
    "Samples",
    "Throughput",
    "TrainingProgress",
    "ValidationReport",
]
