"""What the batches of a loader are used for, as objects: ``uses: [loss, likelihood]``, for example.

The names in a config are entry points of the group ``xlm.uses``, which is the one table of uses. A package
adds a use with a class like those below and a line in its ``pyproject.toml``::

    [project.entry-points."xlm.uses"]
    my_use = "my_package:MyUse"
"""

import inspect
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xlm.core.config.checks import blame, refuse
from xlm.core.config.entry_points import USES, load
from xlm.core.config.errors import XLMError
from xlm.core.data import LoadedBatch
from xlm.core.evaluation.metrics import (
    GenerationCost,
    LikelihoodMean,
    LossMean,
    SamplerLikelihoodMean,
    SummedMetric,
    costs,
    synchronised_time,
)
from xlm.core.evaluation.predictions import GeneratedTexts, decode
from xlm.core.evaluation.slots import Slots
from xlm.core.protocols import (
    Example,
    LikelihoodLoss,
    LikelihoodPredictor,
    LossOutput,
    Prediction,
    SamplerLikelihood,
)
from xlm.modules.records import Targets

NETWORK, SAMPLER = "network", "sampler"
"""What the likelihood of a row belongs to."""
NUM_EVALUATIONS = 3
"""Limit of network evaluations in the check of a predictor."""


class Use(Protocol):
    """One use of one loader: checks its slot, then updates its metrics with each batch.

    Args:
        slots: The objects; a use calls those that it evaluates.
        loader: Stage and name of the loader, such as ``val/lm``.
        texts: Receives generated texts.
    """

    needs_examples: ClassVar[bool]
    """Whether a batch must include its raw examples."""
    metrics: Sequence[SummedMetric[Any]]
    """Metrics, complete after ``check``; each process has the same ones, in the same order."""

    def __init__(self, slots: Slots, loader: str, texts: GeneratedTexts) -> None: ...

    def check(self, batch: LoadedBatch[Any], key: str, *, trains: bool) -> None:
        """Call the slot with one small batch, before any other batch.

        Args:
            batch: A few rows.
            key: Config key of the loader, for messages.
            trains: Whether this is a training loader, so that gradients are checked too.

        Raises:
            XLMError: If the object of the slot does not fit.
        """
        ...

    def update(self, network: nn.Module, batch: LoadedBatch[Any]) -> None:
        """Add one batch to the metrics.

        Args:
            network: The network, possibly compiled.
            batch: Batch on the device of the network.
        """
        ...


def use_class(name: str) -> type[Use]:
    """The class of a use.

    Args:
        name: A name of a checked config.
    """
    return cast("type[Use]", load(USES, name))


def needs_examples(names: Sequence[str]) -> bool:
    """Whether one of these uses needs the raw examples."""
    return any(use_class(name).needs_examples for name in names)


class LossUse:
    """The training objective: means of the loss and its terms, and the family's metrics of its output.

    Evaluation reports each term under the name that it has in training: ``train/token``, ``val/lm/token``.
    """

    needs_examples: ClassVar[bool] = False

    def __init__(self, slots: Slots, loader: str, texts: GeneratedTexts) -> None:
        self.slots = slots
        self.terms: tuple[str, ...] = ()
        """Names of the loss's terms, found by ``check``."""
        self.metrics: list[SummedMetric[Any]] = []

    def check(self, batch: LoadedBatch[Any], key: str, *, trains: bool) -> None:
        """Compute the loss, and its gradient if it ``trains``; its terms fix those of every batch."""
        slots = self.slots
        slots.model.train(trains)
        with blame("loss", "Loss", slots.loss), torch.set_grad_enabled(trains):
            output = slots.loss(slots.model, batch.batch)
        _check_loss_output(slots, output)
        if trains:
            with blame("loss", "Loss", slots.loss):
                output.loss_sum.backward()
            if all(parameter.grad is None for parameter in slots.model.parameters()):
                refuse("loss", "Loss", slots.loss, "its loss_sum reaches no parameter of the model")
            slots.model.zero_grad(set_to_none=True)
        self.terms = tuple(output.terms)
        accumulators = (LossMean(self.terms), *slots.loss_metrics.values())
        self.metrics = [SummedMetric(accumulator) for accumulator in accumulators]

    def update(self, network: nn.Module, batch: LoadedBatch[Any]) -> None:
        """Add the loss of one batch."""
        output = self.slots.loss(network, batch.batch)
        for metric in self.metrics:
            metric.update(output)


def _check_loss_output(slots: Slots, output: LossOutput) -> None:
    missing = [name for name in ("loss_sum", "loss_count", "terms") if not hasattr(output, name)]
    if missing:
        reason = f"its output {type(output).__qualname__} has no {', '.join(missing)}"
        refuse("loss", "Loss", slots.loss, reason)
    sums = {"loss_sum": output.loss_sum, "loss_count": output.loss_count}
    terms = {f"terms[{name!r}]": term for name, term in output.terms.items()}
    for name, value in cast("Mapping[str, object]", sums | terms).items():
        if not isinstance(value, Tensor) or value.ndim != 0:
            refuse("loss", "Loss", slots.loss, f"{name} is {_describe(value)}, not a scalar tensor")
    loss_sum = output.loss_sum.item()
    if not math.isfinite(loss_sum):
        refuse("loss", "Loss", slots.loss, f"loss_sum is {loss_sum} on the first rows")


class LikelihoodUse:
    """The likelihood of the targets, or an upper bound of its negative logarithm."""

    needs_examples: ClassVar[bool] = False

    def __init__(self, slots: Slots, loader: str, texts: GeneratedTexts) -> None:
        self.slots, self.loader, self.texts = slots, loader, texts
        self.metrics = [SummedMetric[Any](LikelihoodMean())]

    def check(self, batch: LoadedBatch[Any], key: str, *, trains: bool) -> None:
        """Estimate the likelihood once."""
        slots = self.slots
        if not hasattr(slots.loss, "likelihood"):
            reason = f"it has no likelihood(model, batch), which `{key}.uses` requires"
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

    def update(self, network: nn.Module, batch: LoadedBatch[Any]) -> None:
        """Add the likelihood of one batch."""
        loss = cast("LikelihoodLoss[Any]", self.slots.loss)
        started = synchronised_time(batch.seeds.device)
        likelihood = loss.likelihood(network, batch.batch)
        seconds = synchronised_time(batch.seeds.device) - started
        self.metrics[0].update(likelihood)
        self.texts.add_likelihood(self.loader, batch.places, NETWORK, likelihood, seconds)


class GenerationUse:
    """Generated texts: their cost, the task's metrics, and the files."""

    needs_examples: ClassVar[bool] = True

    def __init__(self, slots: Slots, loader: str, texts: GeneratedTexts) -> None:
        self.slots, self.loader, self.texts = slots, loader, texts
        self._cost = SummedMetric[Any](GenerationCost())
        self._scores = [SummedMetric[Any](metric) for metric in slots.generation_metrics.values()]
        self.metrics = [self._cost, *self._scores]

    def check(self, batch: LoadedBatch[Any], key: str, *, trains: bool) -> None:
        """Check the metrics, then generate, limited to a few evaluations of the network."""
        slots = self.slots
        assert batch.examples is not None
        for name, metric in slots.generation_metrics.items():
            if hasattr(metric, "check"):
                _check_metric(cast("CheckedMetric", metric), f"task.metrics.{name}", batch.examples, slots)
        try:
            with _prompts_are_checked(slots, key), _few_evaluations(slots.model):
                prediction = self._predict(slots.model, batch, trace=slots.trace)
        except _EnoughError:
            return
        missing = [name for name in ("ids", "lengths", "nfe", "trace") if not hasattr(prediction, name)]
        if missing:
            refuse("predictor", "Predictor", slots.predictor, f"its prediction has no {', '.join(missing)}")
        if prediction.lengths.shape != batch.seeds.shape:
            reason = f"lengths has the shape {tuple(prediction.lengths.shape)} for {len(batch.seeds)} rows"
            refuse("predictor", "Predictor", slots.predictor, reason)

    def update(self, network: nn.Module, batch: LoadedBatch[Any]) -> None:
        """Generate a text for each row of one batch."""
        assert batch.examples is not None
        trace = self.slots.trace if self.texts.wants_trace(self.loader) else False
        started = synchronised_time(batch.seeds.device)
        prediction = self._predict(network, batch, trace=trace)
        spent = costs(prediction, synchronised_time(batch.seeds.device) - started)
        generations = decode(prediction, batch.examples, self.slots.tokenizer)
        self._cost.update(spent)
        for score in self._scores:
            score.update(generations)
        self.texts.add(self.loader, batch.places, prediction, generations, self.slots.tokenizer, spent)

    def _predict(
        self, network: nn.Module, batch: LoadedBatch[Any], *, trace: bool | Literal["full"]
    ) -> Prediction:
        # "full" is an extension of the Protocol; to a predictor without it, it is as good as True.
        predictor = cast("Callable[..., Prediction]", self.slots.predictor)
        return predictor(network, batch.batch, batch.seeds, trace=trace)


class CheckedMetric(Protocol):
    """A metric of generated texts that needs something which may be missing, such as a model or a package."""

    def check(self, references: Sequence[str], /) -> None:
        """Look for it before the evaluation, with the target texts of the first rows, "" where there is none.

        An ImportError, OSError or ValueError is shown as one line with the key of the metric.
        """
        ...


def _check_metric(metric: CheckedMetric, key: str, examples: Sequence[Example], slots: Slots) -> None:
    """Let a metric look for what it needs, with the targets of the first rows, "" for a row without one."""
    targets = [example.get("target_ids") for example in examples]
    references = ["" if ids is None else slots.tokenizer.decode(ids.tolist()) for ids in targets]
    try:
        metric.check(references)
    except (ImportError, OSError, ValueError) as error:
        raise XLMError(f"{key}: {error}") from error


class _Coupled(Protocol):
    """A predictor whose likelihood couples the orders of its draws."""

    def likelihood(
        self,
        model: nn.Module,
        batch: object,
        targets: Targets,
        seeds: Tensor,
        /,
        *,
        num_draws: int,
        event: Literal["text", "cells"],
        coupling: Literal["rotations"],
    ) -> SamplerLikelihood: ...


class SamplerLikelihoodUse:
    """The likelihood of the targets under the sampler of the predictor, with all its options."""

    needs_examples: ClassVar[bool] = True

    def __init__(self, slots: Slots, loader: str, texts: GeneratedTexts) -> None:
        self.slots, self.loader, self.texts = slots, loader, texts
        self.metrics = [SummedMetric[Any](SamplerLikelihoodMean())]

    def check(self, batch: LoadedBatch[Any], key: str, *, trains: bool) -> None:
        """Score the targets, limited to a few evaluations of the network."""
        slots = self.slots
        if not hasattr(slots.predictor, "likelihood"):
            reason = f"it has no likelihood(model, batch, targets, seeds), which `{key}.uses` requires"
            refuse("predictor", "Predictor", slots.predictor, reason)
        assert batch.examples is not None
        if any("target_ids" not in example for example in batch.examples):
            raise XLMError(
                f"{key}.columns: sampler_likelihood scores the targets of the rows, which have none. Set "
                "columns to null, or to a list with target_ids"
            )
        coupling = slots.sampler_likelihood.coupling
        takes = inspect.signature(cast("LikelihoodPredictor[Any]", slots.predictor).likelihood).parameters
        if coupling != "independent" and "coupling" not in takes:
            raise XLMError(
                f"sampler_likelihood.coupling: {coupling} is for samplers that write single cells in random "
                "order; the likelihood of this predictor has no such option. Set it to independent"
            )
        try:
            with _prompts_are_checked(slots, key), _few_evaluations(slots.model):
                likelihood = self._score(slots.model, batch)
        except _EnoughError:
            return
        names = ("nll", "num_tokens", "nll_kind", "num_draws", "models_length")
        names = (*names, "log_weights", "smallest_gap", "nfe")
        missing = [name for name in names if not hasattr(likelihood, name)]
        if missing:
            refuse("predictor", "Predictor", slots.predictor, f"its likelihood has no {', '.join(missing)}")

    def update(self, network: nn.Module, batch: LoadedBatch[Any]) -> None:
        """Add the likelihood of one batch."""
        started = synchronised_time(batch.seeds.device)
        likelihood = self._score(network, batch)
        seconds = synchronised_time(batch.seeds.device) - started
        self.metrics[0].update(likelihood)
        self.texts.add_likelihood(self.loader, batch.places, SAMPLER, likelihood, seconds)

    def _score(self, network: nn.Module, batch: LoadedBatch[Any]) -> SamplerLikelihood:
        assert batch.examples is not None
        options = self.slots.sampler_likelihood
        rows = [example["target_ids"] for example in batch.examples if "target_ids" in example]
        targets = Targets(
            ids=pad_sequence(rows, batch_first=True).to(batch.seeds.device),
            lengths=torch.tensor([len(row) for row in rows], device=batch.seeds.device),
        )
        predictor = cast("LikelihoodPredictor[Any]", self.slots.predictor)
        if options.coupling == "independent":
            return predictor.likelihood(
                network, batch.batch, targets, batch.seeds, num_draws=options.num_draws, event=options.event
            )
        return cast("_Coupled", predictor).likelihood(
            network,
            batch.batch,
            targets,
            batch.seeds,
            num_draws=options.num_draws,
            event=options.event,
            coupling=options.coupling,
        )


@contextmanager
def _prompts_are_checked(slots: Slots, key: str) -> Generator[None]:
    """Report an error of the predictor on the first rows, such as a field that only prompts have."""
    try:
        with blame("predictor", "Predictor", slots.predictor, f" of `{key}`"):
            yield
    except XLMError as error:
        if isinstance(error.__cause__, KeyError):  # a field that the batches of other collators lack
            raise XLMError(
                f"{key}.uses: the predictor reads {error.__cause__}, which the batches of its "
                "collator lack. Generation needs a collator of prompts, like that of another "
                "loader whose `uses` includes generation"
            ) from error
        raise


@contextmanager
def _few_evaluations(model: nn.Module) -> Generator[None]:
    """Raise :class:`_EnoughError` after a few evaluations of the model, which is set to evaluation mode."""
    evaluations = 0

    def count(module: nn.Module, inputs: object) -> None:
        nonlocal evaluations
        evaluations += 1
        if evaluations > NUM_EVALUATIONS:
            raise _EnoughError

    model.eval()
    handle = model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        handle.remove()


class _EnoughError(BaseException):
    """Ends the check of a predictor after a few steps; passes any ``except Exception``."""


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
