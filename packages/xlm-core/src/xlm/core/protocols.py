"""The slots of the harness, as structural types.

A class fills a slot by having the right methods; there is nothing to inherit and nothing of XLM to
import. The batch type belongs to the model family alone: the harness carries it from the collator to
the loss and the predictor without looking inside, hence the type variables.

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
    """One row of data as every family sees it: token ids without special tokens.

    Which keys a row has tells what is asked: only ``target_ids`` for language modelling, a prompt for
    prefix to suffix, ``fixed`` for infilling, no ids at all for unconditional generation.
    """

    seed: int
    """Source of all randomness that touches this row (int64): a function of run seed, epoch and row."""
    place: NotRequired[int]
    """Place of the row in the stream of all processes and epochs; stratified noise follows it."""
    prompt_ids: NotRequired[Tensor]
    """(prompt,) int64: given text that stands left of the target."""
    target_ids: NotRequired[Tensor]
    """(target,) int64: the text to model or to generate."""
    fixed: NotRequired[Tensor]
    """(target,) bool: target tokens that are given (infilling)."""
    segment_ids: NotRequired[Tensor]
    """(target,) int64: number of the document in a packed block that a token belongs to, from 0; there where
    documents are kept apart. A separator belongs to the document before it."""


class Collator(Protocol[BatchOut]):
    """Makes a batch of examples: special tokens, noise, padding to the longest row."""

    def __call__(self, examples: Sequence[Example], /) -> BatchOut:
        """Collate without changing the examples; draw only from their seeds."""
        ...


class LossOutput(Protocol):
    """A loss as a sum and its normaliser, so that accumulation and ranks can be added up exactly."""

    @property
    def loss_sum(self) -> Tensor:
        """Scalar that is differentiated."""
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
        """Evaluate ``model`` on ``batch``, leaving the batch unchanged."""
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
        """Whether the expectation of ``nll`` is the value itself or an upper bound of it."""
        ...

    @property
    def num_draws(self) -> int:
        """Draws of noise averaged for each example."""
        ...

    @property
    def models_length(self) -> bool:
        """Whether the length of the target is part of what is scored."""
        ...


class LikelihoodLoss(Protocol[BatchIn]):
    """A loss whose family also has a likelihood."""

    def likelihood(self, model: nn.Module, batch: BatchIn, /) -> Likelihood:
        """Estimate the likelihood of the examples in ``batch``."""
        ...


class Trace(Protocol):
    """How texts came to be: one entry per edit, 1-D int64 tensors of the same length, in order.

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
        """0: insert ``token`` into gap ``position``; 1: write ``token`` at ``position``."""
        ...

    @property
    def position(self) -> Tensor:
        """Gap (0 to the current length) or position in the target as it is at that moment."""
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
        """(batch,) evaluations of the network that each row took part in."""
        ...

    @property
    def trace(self) -> Trace | None:
        """The edits, when asked for."""
        ...


class Predictor(Protocol[BatchIn]):
    """Inference. The model is passed in, never stored."""

    def __call__(
        self, model: nn.Module, batch: BatchIn, seeds: Tensor, /, *, trace: bool = False
    ) -> Prediction:
        """Generate a target for each row; ``seeds`` (batch,) int64 are the only randomness."""
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
        """Derivative of ``alpha`` by time."""
        ...

    def inverse(self, alpha: Tensor, /) -> Tensor:
        """Time at which ``alpha`` is reached."""
        ...

    def loss_weight(self, t: Tensor, /) -> Tensor:
        """-alpha'(t) / (1 - alpha(t))."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back, with the ids of the special tokens that it has.

    Prepared data are kept under a key that covers the tokenizer's contents: a hash of the pickled object, or
    its attribute ``fingerprint`` (str) if it has one. An object that knows where it was loaded from, or that
    changes while it works, should have one.
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
        """Ids of each text, as ``encode`` gives them; the preparation of data calls this."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """Text of ``ids``, special tokens shown."""
        ...


class Generation(TypedDict):
    """One generated text beside what was asked and what was expected."""

    prompt_ids: list[int]
    ids: list[int]
    reference_ids: list[int]
    prompt: str
    text: str
    reference: str
    fixed: NotRequired[list[bool]]
    """Which tokens of the reference were given (infilling)."""


class Metric(Protocol):
    """A plain accumulator of sums; the harness adds them up over ranks.

    A metric that needs more than sums (a set of texts, say) also has ``lists: dict[str, Tensor]``, empty at
    first, with one row per entry; the harness joins those of all ranks along the first axis.
    """

    sums: dict[str, Tensor]

    def reset(self) -> None:
        """Set every sum to zero."""
        ...

    def compute(self) -> Mapping[str, float]:
        """Named results of what was accumulated; never NaN."""
        ...


class GenerationMetric(Metric, Protocol):
    """A metric of generated texts; belongs to a task."""

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
    """Where raw rows come from: a generator function, or a loader such as ``datasets.load_dataset``."""

    def __call__(self, *, split: str) -> Iterable[Row]:
        """Rows of one split, in a fixed order."""
        ...


class RowFilter(Protocol):
    """Chooses raw rows."""

    def __call__(self, row: Row, /) -> bool:
        """Whether to keep ``row``."""
        ...


class Preprocess(Protocol):
    """Turns a raw row into the columns of an example."""

    def __call__(self, row: Row, tokenizer: Tokenizer, /) -> Mapping[str, object] | None:
        """Columns ``prompt_ids``, ``target_ids``, ``fixed``, whichever the task has; None leaves the row out.

        Ids may be given as a list, or as text: the text of many rows is then tokenised at once, which is much
        faster than calling the tokenizer here. Beside the columns there may be a `note`, a text that says
        what is particular about a row and goes on after a number, such as "without a bond to cut, kept
        whole": how many rows bear each note is counted.
        """
        ...


OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""Makes an optimizer of ``model.named_parameters()``, which torch's optimizers take as they do parameters."""


class LRSchedulerFactory(Protocol):
    """Makes a learning-rate schedule over a known number of optimizer steps."""

    def __call__(
        self, optimizer: torch.optim.Optimizer, /, *, num_steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Schedule for ``num_steps`` optimizer steps, stepped after each."""
        ...
