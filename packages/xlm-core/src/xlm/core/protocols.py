"""The slots of the harness, as structural types.

A class fits a slot if it has the right methods; it need not inherit from or import anything of XLM. The batch
type belongs to the model family: the harness passes it from the collator to the loss and the predictor
without reading it, hence the type variables.

Results are read through properties, so frozen dataclasses, named tuples and plain classes all fit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NotRequired, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn

BatchOut = TypeVar("BatchOut", covariant=True)
BatchIn = TypeVar("BatchIn", contravariant=True)
OutputIn = TypeVar("OutputIn", contravariant=True)


class Example(TypedDict):
    """One row of data, the same for every family: token ids without special tokens.

    The keys of a row determine the problem: only ``target_ids`` for language modelling, a prompt for prefix
    to suffix, ``fixed`` for infilling, no ids for unconditional generation.
    """

    seed: int
    """Source of all randomness of this row (int64): a function of run seed, epoch and row."""
    place: NotRequired[int]
    """Position of the row in the stream of all processes and epochs, for stratified noise."""
    prompt_ids: NotRequired[Tensor]
    """(prompt,) int64: given text before the target."""
    target_ids: NotRequired[Tensor]
    """(target,) int64: the text to model or to generate."""
    fixed: NotRequired[Tensor]
    """(target,) bool: target tokens that are given (infilling)."""
    segment_ids: NotRequired[Tensor]
    """(target,) int64: index of each token's document in a packed block, if documents are kept apart. A
    separator belongs to the document before it."""


class Collator(Protocol[BatchOut]):
    """Turns examples into a batch: special tokens, noise, padding to the longest row."""

    def __call__(self, examples: Sequence[Example], /) -> BatchOut:
        """Collate without modifying the examples; all randomness is a function of their seeds."""
        ...


class LossOutput(Protocol):
    """A loss as a sum and its normaliser, so that sums over micro-batches and ranks are exact."""

    @property
    def loss_sum(self) -> Tensor:
        """Scalar to differentiate."""
        ...

    @property
    def loss_count(self) -> Tensor:
        """Scalar number of units (tokens, masked cells, rows) in ``loss_sum``."""
        ...

    @property
    def terms(self) -> Mapping[str, Tensor]:
        """Named scalar sums that add up to ``loss_sum``, of the same names for every batch.

        Their means are logged as ``train/NAME`` and reported as ``val/LOADER/NAME`` and ``test/LOADER/NAME``.
        """
        ...


class Loss(Protocol[BatchIn]):
    """The training objective. The model is passed in, never stored."""

    def __call__(self, model: nn.Module, batch: BatchIn, /) -> LossOutput:
        """Evaluate ``model`` on ``batch`` without modifying the batch."""
        ...


class Likelihood(Protocol):
    """An estimate of -log p(target | prompt), the same quantity for every family."""

    @property
    def nll(self) -> Tensor:
        """(examples,) nats per example; averaged over draws, unbiased."""
        ...

    @property
    def num_tokens(self) -> Tensor:
        """(examples,) target tokens of the raw example, without any special token."""
        ...

    @property
    def nll_kind(self) -> Literal["exact", "bound"]:
        """Whether the expected ``nll`` is exact or an upper bound."""
        ...

    @property
    def num_draws(self) -> int:
        """Number of noise draws averaged per example."""
        ...

    @property
    def models_length(self) -> bool:
        """Whether the likelihood includes the length of the target."""
        ...


class LikelihoodLoss(Protocol[BatchIn]):
    """A loss whose family also has a likelihood."""

    def likelihood(self, model: nn.Module, batch: BatchIn, /) -> Likelihood:
        """Estimate the likelihood of the examples in ``batch``."""
        ...


class Targets(Protocol):
    """Texts that a sampler's likelihood scores, given tokens of infilling included."""

    @property
    def ids(self) -> Tensor:
        """(rows, width) int64 target tokens, padded on the right, without special tokens."""
        ...

    @property
    def lengths(self) -> Tensor:
        """(rows,) number of target tokens."""
        ...


class SamplerLikelihood(Likelihood, Protocol):
    """-log p(target | prompt) under a sampler with all its options: another quantity than ``Likelihood``.

    ``nll`` is infinite for a text that the sampler cannot write.
    """

    @property
    def log_weights(self) -> Tensor:
        """(draws, examples) nats of each replay; ``nll`` is -log of the mean of their exponentials."""
        ...

    @property
    def smallest_gap(self) -> Tensor:
        """(examples,) least distance between a score that decided a choice and one that would change it."""
        ...

    @property
    def nfe(self) -> Tensor:
        """(examples,) network evaluations of each example, in all draws."""
        ...


class Trace(Protocol):
    """The edits of a generation in order: 1-D int64 tensors of equal length, one entry per edit.

    Replaying the edits of a row from the empty sequence gives its ids. Edits of step 0 build the
    given start of the target.
    """

    @property
    def step(self) -> Tensor:
        """Step of the sampler in which the edit was made."""
        ...

    @property
    def row(self) -> Tensor:
        """Row of the batch."""
        ...

    @property
    def operation(self) -> Tensor:
        """0: insert ``token`` into gap ``position``; 1: write ``token`` at ``position``; 2: delete there."""
        ...

    @property
    def position(self) -> Tensor:
        """Gap (0 to the current length) or position in the target before the edit."""
        ...

    @property
    def token(self) -> Tensor:
        """Token id."""
        ...


class Prediction(Protocol):
    """Generated targets."""

    @property
    def ids(self) -> Tensor:
        """(batch, width) int64 target tokens, padded on the right, without special tokens."""
        ...

    @property
    def lengths(self) -> Tensor:
        """(batch,) number of tokens in each row of ``ids``."""
        ...

    @property
    def nfe(self) -> Tensor:
        """(batch,) number of network evaluations of each row."""
        ...

    @property
    def trace(self) -> Trace | None:
        """The edits, if requested."""
        ...


class Predictor(Protocol[BatchIn]):
    """Inference. The model is passed in, never stored."""

    def __call__(
        self, model: nn.Module, batch: BatchIn, seeds: Tensor, /, *, trace: bool = False
    ) -> Prediction:
        """Generate a target for each row; ``seeds`` (batch,) int64 are the only source of randomness."""
        ...


class LikelihoodPredictor(Protocol[BatchIn]):
    """A predictor whose sampler has a likelihood."""

    def likelihood(
        self,
        model: nn.Module,
        batch: BatchIn,
        targets: Targets,
        seeds: Tensor,
        /,
        *,
        num_draws: int = 1,
        event: Literal["text", "cells"] = "text",
    ) -> SamplerLikelihood:
        """Score ``targets`` under the sampler; a ValueError names an option without a likelihood."""
        ...


class NoiseSchedule(Protocol):
    """Noise level over time: t = 0 is clean, t = 1 is noise."""

    @property
    def is_complete(self) -> bool:
        """Whether alpha(0) = 1 and alpha(1) = 0, without which there is no likelihood bound."""
        ...

    def alpha(self, t: Tensor, /) -> Tensor:
        """Probability that a token is still clean at time ``t``."""
        ...

    def d_alpha(self, t: Tensor, /) -> Tensor:
        """Derivative of ``alpha`` with respect to time."""
        ...

    def inverse(self, alpha: Tensor, /) -> Tensor:
        """Time at which ``alpha`` is reached."""
        ...

    def loss_weight(self, t: Tensor, /) -> Tensor:
        """-alpha'(t) / (1 - alpha(t))."""
        ...


class Tokenizer(Protocol):
    """Converts text to ids and back, and has the ids of its special tokens.

    The cache key of prepared data covers the tokenizer's contents: a hash of the pickled object, or its
    attribute ``fingerprint`` (str). An object that stores its path, or changes during use, should have one.
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        ...

    @property
    def pad_id(self) -> int | None: ...  # noqa: D102
    @property
    def cls_id(self) -> int | None: ...  # noqa: D102
    @property
    def mask_id(self) -> int | None: ...  # noqa: D102
    @property
    def eos_id(self) -> int | None: ...  # noqa: D102
    @property
    def bos_id(self) -> int | None: ...  # noqa: D102
    @property
    def sep_id(self) -> int | None: ...  # noqa: D102
    @property
    def unk_id(self) -> int | None: ...  # noqa: D102

    def encode(self, text: str, /) -> list[int]:
        """Ids of ``text``, without special tokens around it."""
        ...

    def encode_batch(self, texts: Sequence[str], /) -> Sequence[Sequence[int]]:
        """Ids of each text, equal to those of ``encode``; the preparation of data calls this."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """Text of ``ids``, special tokens shown."""
        ...


class Generation(TypedDict):
    """One generated text with its prompt and reference."""

    prompt_ids: list[int]
    ids: list[int]
    reference_ids: list[int]
    prompt: str
    text: str
    reference: str
    fixed: NotRequired[list[bool]]
    """Mask of the given tokens of the reference (infilling)."""


class Metric(Protocol):
    """A plain accumulator of sums, which the harness adds over ranks.

    A metric that needs more than sums (a set of texts, for example) also has ``lists: dict[str, Tensor]``,
    empty at first, with one row per entry; the harness concatenates those of all ranks along the first axis.
    """

    sums: dict[str, Tensor]

    def reset(self) -> None:
        """Set every sum to zero."""
        ...

    def compute(self) -> Mapping[str, float]:
        """Named values of the metric; never NaN."""
        ...


class GenerationMetric(Metric, Protocol):
    """A metric of generated texts; belongs to a task.

    It may have ``check(references)``, see :class:`xlm.core.evaluation.uses.CheckedMetric`."""

    def update(self, generations: Sequence[Generation], /) -> None:
        """Add generations."""
        ...


class LossMetric(Metric, Protocol[OutputIn]):
    """A metric of a loss's own output; belongs to a model family."""

    def update(self, output: OutputIn, /) -> None:
        """Add one output of the family's loss."""
        ...


Row = Mapping[str, object]


class Source(Protocol):
    """Source of raw rows: a generator function, or a loader such as ``datasets.load_dataset``.

    With an argument ``local`` in its node it also reads ``source=FILES``.
    """

    def __call__(self, *, split: str) -> Iterable[Row]:
        """Rows of one split, in a fixed order."""
        ...


class RowFilter(Protocol):
    """Selects raw rows."""

    def __call__(self, row: Row, /) -> bool:
        """Whether to keep ``row``."""
        ...


class Preprocess(Protocol):
    """Turns a raw row into the columns of an example."""

    def __call__(self, row: Row, tokenizer: Tokenizer, /) -> Mapping[str, object] | None:
        """Columns ``prompt_ids``, ``target_ids``, ``fixed``, whichever the task has; None drops the row.

        Return ids as a list, or as text: the text of many rows is then tokenised together, which is much
        faster than calling the tokenizer here. An optional ``note`` beside the columns describes a row in
        words that follow a number, such as "without a bond to cut, kept whole"; the summary counts the rows
        with each note.
        """
        ...


OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""Makes an optimizer of ``model.named_parameters()``, which torch's optimizers accept."""


class LRSchedulerFactory(Protocol):
    """Makes a learning-rate schedule over a known number of optimizer steps."""

    def __call__(
        self, optimizer: torch.optim.Optimizer, /, *, num_steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Schedule for ``num_steps`` optimizer steps, stepped after each."""
        ...
