"""Does each object fit its slot? Asked before training: by its methods, then with one small batch.

(``isinstance`` with runtime-checkable Protocols is not used: it looks at names only, so it accepts methods
with the wrong arguments.)
"""

import inspect
import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from xlm.core.data import DataModule, LoadedBatch
from xlm.core.errors import XLMError
from xlm.core.harness import Slots
from xlm.core.protocols import LikelihoodLoss, LossOutput
from xlm.core.schema import Stage

NUM_ROWS = 2
"""Rows in the batch that goes through every slot."""
NUM_EVALUATIONS = 3
"""Network evaluations after which the check of a predictor is stopped."""


def refuse(key: str, slot: str, filling: object, reason: str) -> NoReturn:
    """Report an object that does not fit.

    Raises:
        XLMError: Always; names the slot, the config key, the class and what is missing.
    """
    name = f"{type(filling).__module__}.{type(filling).__qualname__}"
    raise XLMError(
        f"The slot {slot} (config key `{key}`) is filled with {name}, which does not fit: {reason}."
    )


def check_methods(filling: object, key: str, slot: str, names: Iterable[str]) -> None:
    """Refuse an object that lacks one of ``names``."""
    missing = [name for name in names if not hasattr(filling, name)]
    if missing:
        refuse(key, slot, filling, f"it has no {', '.join(missing)}")


def check_call(filling: Any, key: str, slot: str, arguments: str, **keywords: object) -> None:
    """Refuse an object that cannot be called with ``arguments`` (space-separated names of positionals)."""
    check_methods(filling, key, slot, ("__call__",))
    try:
        inspect.signature(filling).bind(*arguments.split(), **keywords)
    except TypeError as error:
        call = ", ".join([*arguments.split(), *(f"{name}=..." for name in keywords)])
        refuse(key, slot, filling, f"it cannot be called as ({call}): {error}")


def check_slots(slots: Slots, datamodule: DataModule) -> None:
    """Send two rows through collator, loss, backward and predictor, as every loader asks for.

    Leaves the model's weights, its gradients and the state of the random generators as they were.

    Raises:
        XLMError: When an object does not fit its slot.
    """
    check_call(slots.loss, "loss", "Loss", "model batch")
    check_call(slots.predictor, "predictor", "Predictor", "model batch seeds", trace=False)
    was_training = slots.model.training
    with torch.random.fork_rng():
        for stage, loaders in datamodule.loaders.items():
            for name, settings in loaders.items():
                key = f"datamodule.{stage}.{name}"
                batch = _first_batch(datamodule, stage, name, f"{key}.collator")
                if "loss" in settings.uses:
                    _check_loss(slots, batch, backward=stage == "train")
                if "likelihood" in settings.uses:
                    _check_likelihood(slots, batch, key)
                if "generation" in settings.uses:
                    _check_predictor(slots, batch)
    slots.model.train(was_training)


def _first_batch(datamodule: DataModule, stage: Stage, name: str, key: str) -> LoadedBatch[Any]:
    examples = datamodule.first_examples(stage, name, NUM_ROWS)
    collator = datamodule.collators[stage][name]
    check_call(collator, key, "Collator", "examples")
    with _blame(key, "Collator", collator):
        return datamodule.collate(stage, name)(examples)


def _check_loss(slots: Slots, batch: LoadedBatch[Any], *, backward: bool) -> None:
    slots.model.train(backward)
    with _blame("loss", "Loss", slots.loss), torch.set_grad_enabled(backward):
        output = slots.loss(slots.model, batch.batch)
    _check_loss_output(slots, output)
    if backward:
        with _blame("loss", "Loss", slots.loss):
            output.loss_sum.backward()
        if all(parameter.grad is None for parameter in slots.model.parameters()):
            refuse("loss", "Loss", slots.loss, "its loss_sum reaches no parameter of the model")
        slots.model.zero_grad(set_to_none=True)


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
    with _blame("loss", "Loss", slots.loss), torch.no_grad():
        likelihood = cast("LikelihoodLoss[Any]", slots.loss).likelihood(slots.model, batch.batch)
    names = ("nll", "num_tokens", "nll_kind", "num_draws", "models_length")
    missing = [name for name in names if not hasattr(likelihood, name)]
    if missing:
        refuse("loss", "Loss", slots.loss, f"its likelihood has no {', '.join(missing)}")
    if likelihood.nll.shape != batch.seeds.shape:
        shape, rows = tuple(likelihood.nll.shape), tuple(batch.seeds.shape)
        refuse("loss", "Loss", slots.loss, f"nll has the shape {shape} for {rows} examples")


class _EnoughError(Exception):
    """Ends the check of a predictor that would go on for hundreds of steps."""


def _check_predictor(slots: Slots, batch: LoadedBatch[Any]) -> None:
    evaluations = 0

    def count(module: nn.Module, inputs: object) -> None:
        nonlocal evaluations
        evaluations += 1
        if evaluations > NUM_EVALUATIONS:
            raise _EnoughError

    slots.model.eval()
    handle = slots.model.register_forward_pre_hook(count)
    try:
        with _blame("predictor", "Predictor", slots.predictor):
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


@contextmanager
def _blame(key: str, slot: str, filling: object) -> Generator[None]:
    """Turn an exception of a slot's own code into a message that says whose it is."""
    try:
        yield
    except (XLMError, _EnoughError):
        raise
    except Exception as error:
        name = f"{type(filling).__module__}.{type(filling).__qualname__}"
        raise XLMError(
            f"The slot {slot} (config key `{key}`, {name}) failed on the first rows:\n"
            f"  {type(error).__name__}: {error}"
        ) from error
