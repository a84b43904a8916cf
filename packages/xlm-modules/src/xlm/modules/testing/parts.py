"""The parts of a family as structural types, and two tools to look at them."""
# ruff: noqa: D102  # the members of a Protocol are described in the docstring of its class

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeVar, cast

from torch import Tensor, nn

from xlm.modules.records import Example

BatchIn = TypeVar("BatchIn", contravariant=True)
BatchOut = TypeVar("BatchOut", covariant=True)


class LossOutput(Protocol):
    """Scalars: the sum to differentiate, its normaliser, and named terms that add up to the sum."""

    @property
    def loss_sum(self) -> Tensor: ...
    @property
    def loss_count(self) -> Tensor: ...
    @property
    def terms(self) -> Mapping[str, Tensor]: ...


class Likelihood(Protocol):
    """Nats (examples,), target tokens that are not given (examples,), and what the estimate is."""

    @property
    def nll(self) -> Tensor: ...
    @property
    def num_tokens(self) -> Tensor: ...
    @property
    def nll_kind(self) -> Literal["exact", "bound"]: ...
    @property
    def num_draws(self) -> int: ...
    @property
    def models_length(self) -> bool: ...


class Trace(Protocol):
    """Edits in order, (edits,) each: operation 0 inserts into a gap, operation 1 writes at a position."""

    @property
    def step(self) -> Tensor: ...
    @property
    def row(self) -> Tensor: ...
    @property
    def operation(self) -> Tensor: ...
    @property
    def position(self) -> Tensor: ...
    @property
    def token(self) -> Tensor: ...


class Prediction(Protocol):
    """Target ids (rows, width) padded on the right, their lengths (rows,), network evaluations (rows,)."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor: ...
    @property
    def nfe(self) -> Tensor: ...
    @property
    def trace(self) -> Trace | None: ...


class Collator(Protocol[BatchOut]):
    """Makes a batch of examples."""

    def __call__(self, examples: Sequence[Example], /) -> BatchOut: ...


class Loss(Protocol[BatchIn]):
    """A training objective."""

    def __call__(self, model: nn.Module, batch: BatchIn, /) -> LossOutput: ...


class LikelihoodLoss(Protocol[BatchIn]):
    """A loss that has a likelihood."""

    def likelihood(self, model: nn.Module, batch: BatchIn, /) -> Likelihood: ...


class Predictor(Protocol[BatchIn]):
    """A sampler."""

    def __call__(
        self, model: nn.Module, batch: BatchIn, seeds: Tensor, /, *, trace: bool = False
    ) -> Prediction: ...


class CountingModel(nn.Module):
    """Passes calls on to a network, and counts them and the rows in them.

    It has none of the network's attributes, so code that reads one instead of calling the network fails.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.calls = 0
        self.rows = 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        self.rows += len(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)))
        return self.inner(*args, **kwargs)


def to_list(tensor: Tensor) -> list[int]:
    """A 1-D tensor as a list."""
    return cast("list[int]", tensor.tolist())


def replay(trace: Trace, row: int) -> list[int]:
    """Ids that the edits of a row lead to, starting from none."""
    ids: list[int] = []
    mine = trace.row == row
    fields = (trace.operation, trace.position, trace.token)
    for operation, position, token in zip(*(to_list(field[mine]) for field in fields), strict=True):
        assert operation in (0, 1), f"operation {operation} is neither 0 (insert) nor 1 (write)"
        assert 0 <= position <= len(ids) - operation, f"edit at {position} of a target of length {len(ids)}"
        ids[position : position + operation] = [token]
    return ids
