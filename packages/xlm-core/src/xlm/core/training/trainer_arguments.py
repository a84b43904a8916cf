"""Checks the node ``trainer`` against the signature of Lightning's trainer."""

import inspect
from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from xlm.core.config.errors import XLMError
from xlm.core.config.near import did_you_mean
from xlm.core.config.signatures import check_values


def check_trainer_arguments(arguments: Mapping[str, Any]) -> None:
    """Reject unknown arguments of Lightning's trainer, and values of a wrong type.

    Raises:
        XLMError: If a key is unknown; names it and the closest ones.
    """
    known = inspect.signature(lightning.Trainer.__init__).parameters
    for name in arguments:
        if name not in known:
            raise XLMError(
                f"trainer.{name}: Lightning's trainer has no such argument.{did_you_mean(name, known)}"
            )
    check_values("trainer", lightning.Trainer, {**arguments, "_target_": "lightning.Trainer"})


def check_device(accelerator: str, precision: str) -> None:
    """Reject a precision that the device does not support (Lightning would change it silently).

    Raises:
        XLMError: If it is float16 on a CPU.
    """
    has_gpu = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    if precision.startswith("16") and (accelerator == "cpu" or (accelerator == "auto" and not has_gpu)):
        raise XLMError(
            f"trainer.precision: {precision} needs a GPU, and this trainer computes on a CPU. "
            f"Use bf16{precision.removeprefix('16')} or 32-true"
        )
