"""Behaviour that every model family has to show, as a pytest class to subclass.

    from xlm.modules.testing import ConformanceSuite

    class TestConformance(ConformanceSuite[MyBatch, MyPromptBatch]):
        ordinary_ids = range(7, 12)
        pad_id = 0
        ...
        def build_model(self) -> nn.Module: ...

A family consists of a network, a loss and a predictor that are handed the network on each call, and collators
that make their batches of examples. The suite sees them through the Protocols below only. It knows nothing about
how a family works: what makes the numbers right is for the family's own tests.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Generic, Literal, NotRequired, Protocol, TypedDict, TypeVar, cast

import pytest
import torch
from torch import Tensor, nn

Kind = Literal["language_modelling", "prefix", "infilling", "unconditional"]
Edge = Literal["no_ids", "prompt_only", "empty_target", "single_token", "full_length", "all_fixed"]


class Example(TypedDict):
    """One row of data: token ids without special tokens; the keys that are there tell the task."""

    seed: int
    prompt_ids: NotRequired[Tensor]
    target_ids: NotRequired[Tensor]
    fixed: NotRequired[Tensor]


class LossOutput(Protocol):
    """A loss as a sum and its normaliser."""

    @property
    def loss_sum(self) -> Tensor:
        """Scalar that is differentiated."""
        ...

    @property
    def loss_count(self) -> Tensor:
        """Scalar number of units in it."""
        ...

    @property
    def terms(self) -> Mapping[str, Tensor]:
        """Named scalars that add up to ``loss_sum``."""
        ...


class LikelihoodOutput(Protocol):
    """Estimates of -log p(target | prompt)."""

    @property
    def nll(self) -> Tensor:
        """(examples,) nats."""
        ...

    @property
    def num_tokens(self) -> Tensor:
        """(examples,) target tokens that are scored."""
        ...

    @property
    def nll_kind(self) -> Literal["exact", "bound"]:
        """What the expectation of ``nll`` is."""
        ...

    @property
    def num_draws(self) -> int:
        """Draws averaged for each example."""
        ...


class Trace(Protocol):
    """Edits in order, as 1-D tensors; operation 0 inserts into a gap, 1 writes at a position."""

    @property
    def step(self) -> Tensor:
        """Step of the sampler; 0 for what was given."""
        ...

    @property
    def row(self) -> Tensor:
        """Row of the batch."""
        ...

    @property
    def operation(self) -> Tensor:
        """0 or 1."""
        ...

    @property
    def position(self) -> Tensor:
        """Gap or position in the target as it is at that moment."""
        ...

    @property
    def token(self) -> Tensor:
        """Token id."""
        ...


class Prediction(Protocol):
    """Generated targets."""

    @property
    def ids(self) -> Tensor:
        """(rows, width), padded on the right."""
        ...

    @property
    def lengths(self) -> Tensor:
        """(rows,)"""
        ...

    @property
    def nfe(self) -> Tensor:
        """(rows,) evaluations of the network that each row took part in."""
        ...

    @property
    def trace(self) -> Trace | None:
        """The edits, when asked for."""
        ...


BatchIn = TypeVar("BatchIn", contravariant=True)
BatchOut = TypeVar("BatchOut", covariant=True)
LossBatch = TypeVar("LossBatch", bound=Mapping[str, object])
PromptBatch = TypeVar("PromptBatch", bound=Mapping[str, object])
Batch = TypeVar("Batch", bound=Mapping[str, object])


class Collator(Protocol[BatchOut]):
    """Examples to a batch."""

    def __call__(self, examples: Sequence[Example], /) -> BatchOut: ...  # noqa: D102


class Loss(Protocol[BatchIn]):
    """A training objective."""

    def __call__(self, model: nn.Module, batch: BatchIn, /) -> LossOutput: ...  # noqa: D102


class LikelihoodLoss(Protocol[BatchIn]):
    """A loss that has a likelihood."""

    def likelihood(self, model: nn.Module, batch: BatchIn, /) -> LikelihoodOutput:
        """Estimate the likelihood of the examples in the batch."""
        ...


class Predictor(Protocol[BatchIn]):
    """A sampler."""

    def __call__(  # noqa: D102
        self, model: nn.Module, batch: BatchIn, seeds: Tensor, /, *, trace: bool = False
    ) -> Prediction: ...


class CountingModel(nn.Module):
    """Passes calls on to a network, and counts them and their rows.

    It has none of the network's attributes: whoever reads one instead of calling fails.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.calls = 0
        self.rows = 0

    def forward(self, *args: object, **kwargs: object) -> object:
        """Result of the network."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.calls += 1
        self.rows += len(tensors[0])
        return self.inner(*args, **kwargs)


def replay(trace: Trace, row: int) -> list[int]:
    """Ids that the edits of a row lead to, starting with none."""
    ids: list[int] = []
    mine = trace.row == row
    fields = (trace.operation, trace.position, trace.token)
    for operation, position, token in zip(*(field[mine].tolist() for field in fields), strict=True):
        assert operation in (0, 1), f"operation {operation} of the trace is neither 0 (insert) nor 1 (write)"
        end = len(ids) - operation
        assert 0 <= position <= end, f"edit at {position} of a target of length {len(ids)}"
        ids[position : position + operation] = [token]
    return ids


class ConformanceSuite(Generic[LossBatch, PromptBatch]):
    """Subclass it with a name that pytest collects, and fill in what has no value here."""

    ordinary_ids: ClassVar[Sequence[int]]
    """Ids that texts consist of; whatever else a prediction holds is an error."""
    pad_id: ClassVar[int]
    """Id that fills the ids of a prediction beyond their lengths."""
    max_length: ClassVar[int]
    """The longest target, at least 4, that the collators of ``build_...`` accept."""
    loss_padding: ClassVar[Mapping[str, int]]
    """Keys of the loss's batch with shape (rows, length), and what padding on their right holds."""
    prompt_padding: ClassVar[Mapping[str, int]]
    """The same for the predictor's batch."""
    prompt_padding_side: ClassVar[Literal["left", "right"]] = "right"
    """Where the predictor's batch is padded."""
    kinds: ClassVar[Sequence[Kind]] = ("language_modelling", "prefix", "infilling", "unconditional")
    """What the family can do."""
    refused_by_loss: ClassVar[Sequence[Edge]] = ()
    """Edge cases in which there is nothing to learn from; a ValueError says so."""
    refused_by_predictor: ClassVar[Sequence[Edge]] = ()
    """Edge cases in which there is nothing to predict; a ValueError says so."""

    def build_model(self) -> nn.Module:
        """A small network, without dropout; its weights are changed before use."""
        raise NotImplementedError

    def build_loss(self) -> Loss[LossBatch]:
        """The loss."""
        raise NotImplementedError

    def build_predictor(self) -> Predictor[PromptBatch]:
        """The predictor; may insert or write at most max_length tokens."""
        raise NotImplementedError

    def build_loss_collator(self, kind: Kind) -> Collator[LossBatch]:
        """The collator for the loss, for every kind but "unconditional"."""
        raise NotImplementedError

    def build_prompt_collator(self, kind: Kind) -> Collator[PromptBatch]:
        """The collator for the predictor, for every kind but "language_modelling"."""
        raise NotImplementedError

    def build_likelihood(self, kind: Kind) -> tuple[LikelihoodLoss[LossBatch], Collator[LossBatch]] | None:
        """A loss and its collator for likelihoods; None if there is none for this kind."""
        return None
