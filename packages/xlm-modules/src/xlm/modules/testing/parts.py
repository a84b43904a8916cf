"""The parts of a family as structural types, and tools to look at them."""
# ruff: noqa: D102  # the members of a Protocol are described in the docstring of its class

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from xlm.modules.cache import PromptCache
from xlm.modules.masks import default_positions
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
    """Edits in order, (edits,) each: operation 0 inserts into a gap, 1 writes at a position, 2 deletes."""

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


class WholeRows(nn.Module):
    """A network whose prompt does not see the target, evaluated without what it keeps of the prompt.

    Each call with a cache is repeated on whole rows, target and prompt, with the attention mask of the
    prompt. The results are compared, and those of the whole rows returned.

    Args:
        model: The network.
        num_layers: Number of its layers that keep keys and values.
        tolerance: Largest absolute difference of the results.
    """

    prompt_sees_target = False

    def __init__(self, model: nn.Module, *, num_layers: int, tolerance: float) -> None:
        super().__init__()
        self.inner, self.num_layers, self.tolerance = model, num_layers, tolerance

    def forward(self, *args: Any, positions: Tensor, cache: PromptCache, **kwargs: Any) -> Any:
        past = cache.length
        actual = self.inner(*args, positions=positions, cache=cache, **kwargs)
        call = inspect.signature(self.inner.forward).bind(*args, **kwargs).arguments
        ids, real = call["input_ids"], call.get("attention_mask")
        joined = real if past == 0 else cache.extend(ids, real)
        place = call.get("position_ids")
        if place is None:
            place = default_positions(past + ids.shape[1], joined, ids.device)[:, past:].expand_as(ids)
        # Ids and positions of the prompt are kept beside its keys and values, and leave with their rows.
        kept = cache.layer(self.num_layers).append(ids[:, None, :, None], place[:, None, :, None])
        if past == 0:
            return actual
        # Columns of the target come first: a network may read the first one.
        whole_ids, whole_place = (table[:, 0, :, 0].roll(-past, dims=1) for table in kept)
        length = ids.shape[1]
        call |= {
            "input_ids": whole_ids,
            "attention_mask": None if joined is None else joined.roll(-past, dims=1),
            "position_ids": whole_place,
            "positions": positions // length * whole_ids.shape[1] + positions % length,
            "prompt": (torch.arange(whole_ids.shape[1]) >= length).expand_as(whole_ids),
        }
        expected = self.inner(**call)
        torch.testing.assert_close(actual, expected, rtol=0, atol=self.tolerance)
        return expected


def to_list(tensor: Tensor) -> list[int]:
    """A 1-D tensor as a list."""
    return cast("list[int]", tensor.tolist())


def replay(trace: Trace, row: int) -> list[int]:
    """Ids that the edits of a row lead to, starting from none."""
    ids: list[int] = []
    mine = trace.row == row
    fields = (trace.operation, trace.position, trace.token)
    for operation, position, token in zip(*(to_list(field[mine]) for field in fields), strict=True):
        assert operation in (0, 1, 2), f"operation {operation} is none of 0 (insert), 1 (write), 2 (delete)"
        replaced = min(operation, 1)
        assert 0 <= position <= len(ids) - replaced, f"edit at {position} of a target of length {len(ids)}"
        ids[position : position + replaced] = [] if operation == 2 else [token]
    return ids


def texts_of(prediction: Prediction) -> list[list[int]]:
    """Ids of each row, without padding."""
    lengths = to_list(prediction.lengths)
    return [to_list(ids[:length]) for ids, length in zip(prediction.ids, lengths, strict=True)]


def as_module(function: Callable[..., object]) -> Any:
    """What only looks like a network: a loss and a predictor need no more than to call it."""
    return function


def seeds_of_rows(rows: int) -> Tensor:
    """Seeds (rows,) of predictions."""
    return torch.arange(rows) + 100
