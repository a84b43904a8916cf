"""Checks before training, with one small batch, that each object fits its slot.

First the signatures are compared, see :mod:`xlm.core.config.checks`; then each use of a loader calls its
slot, see :mod:`xlm.core.evaluation.uses`.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from xlm.core.config.checks import blame, check_call, refuse
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import Stage
from xlm.core.data import DataModule, LoadedBatch
from xlm.core.evaluation.slots import Slots
from xlm.core.evaluation.uses import LossUse
from xlm.core.training.harness import Harness

NUM_ROWS = 2
"""Rows in the batch that passes through every slot."""


def check_optimizer(slots: Slots, *, num_steps: int) -> None:
    """Make the optimizer and its schedule once, to find invalid numbers before training.

    Raises:
        XLMError: If one cannot be made, or a number is not finite; names the key.
    """
    with _made("optimizer", slots.optimizer):
        optimizer = cast("object", slots.optimizer(slots.model.named_parameters()))
    if not isinstance(optimizer, torch.optim.Optimizer):
        refuse("optimizer", "Optimizer", slots.optimizer, f"it made {_describe(optimizer)}")
    for group in optimizer.param_groups:
        for name, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise XLMError(f"optimizer.{name}: got {value}; it must be finite")
    with _made("lr_scheduler", slots.lr_scheduler):
        slots.lr_scheduler(optimizer, num_steps=num_steps)


@contextmanager
def _made(key: str, filling: object) -> Generator[None]:
    """Turn an exception of a constructor into a message that names the key."""
    try:
        yield
    except XLMError:
        raise
    except Exception as error:
        function = getattr(filling, "func", filling)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise XLMError(f"{key}: could not make {name}.\n  {type(error).__name__}: {error}") from error


def check_slots(
    harness: Harness, datamodule: DataModule, *, stages: Sequence[Stage] = ("train", "val", "test")
) -> set[str]:
    """Pass two rows through collator, loss, backward and predictor, according to the uses of each loader.

    Restores the model's weights, its gradients and the state of the random generators.

    Returns:
        Names of the metrics that training logs.

    Raises:
        XLMError: If an object does not fit its slot.
    """
    slots = harness.slots
    check_call(slots.loss, "loss", "Loss", "model batch")
    check_call(slots.predictor, "predictor", "Predictor", "model batch seeds", trace=False)
    was_training = slots.model.training
    logged: set[str] = set()
    with torch.random.fork_rng():
        for stage in stages:
            for name, uses in harness.evaluation.uses[stage].items():
                key = f"datamodule.{stage}.{name}"
                batch = _first_batch(datamodule, stage, name, f"{key}.collator")
                for use in uses:
                    use.check(batch, key, trains=stage == "train")
                    if stage == "train" and isinstance(use, LossUse):
                        logged |= {f"train/{term}" for term in ("loss", *use.terms)}
    slots.model.train(was_training)
    return logged


def _first_batch(datamodule: DataModule, stage: Stage, name: str, key: str) -> LoadedBatch[Any]:
    examples = datamodule.first_examples(stage, name, NUM_ROWS)
    collator = datamodule.collators[stage][name]
    check_call(collator, key, "Collator", "examples")
    with blame(key, "Collator", collator):
        return datamodule.collate(stage, name)(examples)


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
