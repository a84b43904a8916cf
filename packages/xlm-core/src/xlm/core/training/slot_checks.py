"""Does each object fit its slot? Asked before training, with one small batch.

What a slot is called with is compared with its signature first, see :mod:`xlm.core.config.checks`.
"""

import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from xlm.core.config.checks import blame, check_call, refuse
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import Stage
from xlm.core.data import DataModule, LoadedBatch
from xlm.core.evaluation.slots import Slots
from xlm.core.protocols import LikelihoodLoss, LossOutput

NUM_ROWS = 2
"""Rows in the batch that goes through every slot."""
NUM_EVALUATIONS = 3
"""Network evaluations after which the check of a predictor is stopped."""


def check_optimizer(slots: Slots, *, num_steps: int) -> None:
    """Make the optimizer and its schedule once, so that a training does not begin with bad numbers.

    Raises:
        XLMError: Naming the key of the one that cannot be made, or of a number that is not finite.
    """
    with _made("optimizer", slots.optimizer):
        optimizer = cast("object", slots.optimizer(slots.model.named_parameters()))
    if not isinstance(optimizer, torch.optim.Optimizer):
        refuse("optimizer", "Optimizer", slots.optimizer, f"it made {_describe(optimizer)}")
    for group in optimizer.param_groups:
        for name, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise XLMError(f"optimizer.{name}: got {value}; it has to be finite")
    with _made("lr_scheduler", slots.lr_scheduler):
        slots.lr_scheduler(optimizer, num_steps=num_steps)


@contextmanager
def _made(key: str, filling: object) -> Generator[None]:
    """Turn what a constructor says about its arguments into a message that names the key."""
    try:
        yield
    except XLMError:
        raise
    except Exception as error:
        function = getattr(filling, "func", filling)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise XLMError(f"{key}: could not make {name}.\n  {type(error).__name__}: {error}") from error


def check_slots(
    slots: Slots, datamodule: DataModule, *, stages: Sequence[Stage] = ("train", "val", "test")
) -> set[str]:
    """Send two rows through collator, loss, backward and predictor, as every loader of the stages asks for.

    Leaves the model's weights, its gradients and the state of the random generators as they were.

    Returns:
        Names of the figures that training logs.

    Raises:
        XLMError: When an object does not fit its slot.
    """
    check_call(slots.loss, "loss", "Loss", "model batch")
    check_call(slots.predictor, "predictor", "Predictor", "model batch seeds", trace=False)
    was_training = slots.model.training
    figures: set[str] = set()
    with torch.random.fork_rng():
        for stage in stages:
            for name, settings in datamodule.loaders[stage].items():
                key = f"datamodule.{stage}.{name}"
                batch = _first_batch(datamodule, stage, name, f"{key}.collator")
                if "loss" in settings.uses:
                    terms = _check_loss(slots, batch, backward=stage == "train")
                    figures |= {f"train/{name}" for name in ("loss", *terms) if stage == "train"}
                if "likelihood" in settings.uses:
                    _check_likelihood(slots, batch, key)
                if "generation" in settings.uses:
                    _check_predictor(slots, batch, key)
    slots.model.train(was_training)
    return figures


def _first_batch(datamodule: DataModule, stage: Stage, name: str, key: str) -> LoadedBatch[Any]:
    examples = datamodule.first_examples(stage, name, NUM_ROWS)
    collator = datamodule.collators[stage][name]
    check_call(collator, key, "Collator", "examples")
    with blame(key, "Collator", collator):
        return datamodule.collate(stage, name)(examples)


def _check_loss(slots: Slots, batch: LoadedBatch[Any], *, backward: bool) -> Iterable[str]:
    """Check one output; gives the names of its terms."""
    slots.model.train(backward)
    with blame("loss", "Loss", slots.loss), torch.set_grad_enabled(backward):
        output = slots.loss(slots.model, batch.batch)
    _check_loss_output(slots, output)
    if backward:
        with blame("loss", "Loss", slots.loss):
            output.loss_sum.backward()
        if all(parameter.grad is None for parameter in slots.model.parameters()):
            refuse("loss", "Loss", slots.loss, "its loss_sum reaches no parameter of the model")
        slots.model.zero_grad(set_to_none=True)
    return output.terms


def _check_loss_output(slots: Slots, output: LossOutput) -> None:
    missing = [name for name in ("loss_sum", "loss_count", "terms") if not hasattr(output, name)]
    if missing:
        refuse(
            "loss", "Loss", slots.loss, f"its output {type(output).__qualname__} has no {', '.join(missing)}"
        )
    for name in ("loss_sum", "loss_count"):
        value = getattr(output, name)
        if not isinstance(value, Tensor) or value.ndim != 0:
            refuse("loss", "Loss", slots.loss, f"{name} is {_describe(value)}, not a scalar tensor")
    loss_sum = output.loss_sum.item()
    if not math.isfinite(loss_sum):
        refuse("loss", "Loss", slots.loss, f"loss_sum is {loss_sum} on the first rows")


def _check_likelihood(slots: Slots, batch: LoadedBatch[Any], key: str) -> None:
    if not hasattr(slots.loss, "likelihood"):
        reason = f"it has no likelihood(model, batch), which `{key}.uses` asks for"
        refuse("loss", "Loss", slots.loss, reason)
    slots.model.eval()
    with blame("loss", "Loss", slots.loss), torch.no_grad():
        likelihood = cast("LikelihoodLoss[Any]", slots.loss).likelihood(slots.model, batch.batch)
    names = ("nll", "num_tokens", "nll_kind", "num_draws", "models_length")
    missing = [name for name in names if not hasattr(likelihood, name)]
    if missing:
        refuse("loss", "Loss", slots.loss, f"its likelihood has no {', '.join(missing)}")
    if likelihood.nll.shape != batch.seeds.shape:
        shape, rows = tuple(likelihood.nll.shape), tuple(batch.seeds.shape)
        refuse("loss", "Loss", slots.loss, f"nll has the shape {shape} for {rows} examples")


class _EnoughError(BaseException):
    """Ends the check of a predictor that would go on for hundreds of steps, past any `except Exception`."""


def _check_predictor(slots: Slots, batch: LoadedBatch[Any], loader: str) -> None:
    evaluations = 0

    def count(module: nn.Module, inputs: object) -> None:
        nonlocal evaluations
        evaluations += 1
        if evaluations > NUM_EVALUATIONS:
            raise _EnoughError

    slots.model.eval()
    handle = slots.model.register_forward_pre_hook(count)
    try:
        with blame("predictor", "Predictor", slots.predictor, f" of `{loader}`"):
            prediction = slots.predictor(slots.model, batch.batch, batch.seeds, trace=True)
    except _EnoughError:
        return
    finally:
        handle.remove()
    missing = [name for name in ("ids", "lengths", "nfe", "trace") if not hasattr(prediction, name)]
    if missing:
        refuse("predictor", "Predictor", slots.predictor, f"its prediction has no {', '.join(missing)}")
    if prediction.lengths.shape != batch.seeds.shape:
        reason = f"lengths has the shape {tuple(prediction.lengths.shape)} for {len(batch.seeds)} rows"
        refuse("predictor", "Predictor", slots.predictor, reason)


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
