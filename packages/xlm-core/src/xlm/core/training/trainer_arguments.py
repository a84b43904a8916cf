"""The node ``trainer`` against the signature of Lightning's trainer, before that is made."""

import inspect
from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from xlm.core.config.errors import XLMError
from xlm.core.config.near import did_you_mean
from xlm.core.config.signatures import check_values


def check_trainer_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that Lightning's trainer does not have, or whose values are of another type.

    Raises:
        XLMError: Naming the key, with the closest ones.
    """
    known = inspect.signature(lightning.Trainer.__init__).parameters
    for name in arguments:
        if name not in known:
            raise XLMError(
                f"trainer.{name}: Lightning's trainer has no such argument.{did_you_mean(name, known)}"
            )
    check_values("trainer", lightning.Trainer, {**arguments, "_target_": "lightning.Trainer"})


def check_device(accelerator: str, precision: str) -> None:
    """Refuse a number format that the device does not compute in (Lightning takes another one).

    Raises:
        XLMError: For float16 on a CPU.
    """
    has_gpu = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    if precision.startswith("16") and (accelerator == "cpu" or (accelerator == "auto" and not has_gpu)):
        raise XLMError(
            f"trainer.precision: {precision} needs a GPU, and this trainer computes on a CPU. "
            f"Take bf16{precision.removeprefix('16')} or 32-true"
        )
