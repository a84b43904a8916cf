"""The records: what is not plain data in them; and a family with records of its own, which passes the suite.

The family predicts each token of the target from the last token of the prompt alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import TokenSampling, check_examples, check_vocabulary, uniform
from xlm.modules.records import INSERT, WRITE, Prediction, Trace, TracedPrediction, edits_of_step
from xlm.modules.testing import ConformanceSuite, Kind, replay

PAD, START, VOCAB, MAX_LENGTH = 0, 1, 9, 6


class Row(TypedDict):
    seed: int
    prompt_ids: NotRequired[Tensor]
    target_ids: NotRequired[Tensor]


class Batch(TypedDict):
    target_ids: Tensor
    real: Tensor
    last: Tensor
    lengths: Tensor


class Sums(NamedTuple):
    loss_sum: Tensor
    loss_count: Tensor
    terms: dict[str, Tensor]


class Score:
    """Plain attributes, and what is always the same in the class."""

    nll_kind: Literal["exact", "bound"] = "exact"
    num_draws = 1
    models_length = False

    def __init__(self, nll: Tensor, num_tokens: Tensor) -> None:
        self.nll = nll
        self.num_tokens = num_tokens


class Edits(NamedTuple):
    step: Tensor
    row: Tensor
    operation: Tensor
    position: Tensor
    token: Tensor


class Texts:
    """Properties only."""

    def __init__(self, ids: Tensor, lengths: Tensor, *, traced: bool) -> None:
        self._ids, self._lengths, self._traced = ids, lengths, traced

    @property
    def ids(self) -> Tensor:
        return self._ids

    @property
    def lengths(self) -> Tensor:
        return self._lengths

    @property
    def nfe(self) -> Tensor:
        return torch.ones_like(self._lengths)

    @property
    def trace(self) -> Edits | None:
        if not self._traced:
            return None
        row, position = (torch.arange(self._ids.shape[1]) < self._lengths.unsqueeze(1)).nonzero(as_tuple=True)
        order = position.argsort(stable=True)
        row, position = row[order], position[order]
        return Edits(position + 1, row, torch.zeros_like(row), position, self._ids[row, position])


def collate(examples: Sequence[Row]) -> Batch:
    check_examples(examples)
    nothing = torch.empty(0, dtype=torch.int64)
    targets = [example.get("target_ids", nothing) for example in examples]
    lengths = torch.tensor([len(target) for target in targets])
    if int(lengths.max()) > MAX_LENGTH:
        raise ValueError(f"a target has {int(lengths.max())} tokens, the limit is {MAX_LENGTH}")
    prompts = [example.get("prompt_ids", torch.tensor([START])) for example in examples]
    ids = pad_sequence(targets, batch_first=True, padding_value=PAD)
    return {
        "target_ids": ids,
        "real": torch.arange(ids.shape[1]) < lengths.unsqueeze(1),
        "last": torch.stack([prompt[-1] for prompt in prompts]),
        "lengths": lengths,
    }


def entropies(model: nn.Module, batch: Batch) -> Tensor:
    """(rows,) cross-entropy of the targets."""
    logits: Tensor = model(batch["last"])
    check_vocabulary(batch["target_ids"], VOCAB)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    of_token = wide.log_softmax(1).gather(1, batch["target_ids"])
    return -torch.where(batch["real"], of_token, 0.0).sum(1)


class Loss:
    def __call__(self, model: nn.Module, batch: Batch) -> Sums:
        loss_sum = entropies(model, batch).sum()
        return Sums(loss_sum, batch["lengths"].sum(), {"token": loss_sum})

    def likelihood(self, model: nn.Module, batch: Batch) -> Score:
        return Score(entropies(model, batch).double(), batch["lengths"])


class Predictor:
    @torch.no_grad()
    def __call__(self, model: nn.Module, batch: Batch, seeds: Tensor, *, trace: bool = False) -> Texts:
        logits: Tensor = model(batch["last"])
        logits[:, : START + 1] = -torch.inf
        ids = batch["target_ids"].clone()
        numbers = uniform(seeds, ids.shape[1], step=0, stream=0)
        for column in range(ids.shape[1]):
            drawn = TokenSampling().draw(logits, numbers[:, column])
            ids[:, column] = drawn.where(column < batch["lengths"], PAD)
        return Texts(ids, batch["lengths"], traced=trace)


class TestConformance(ConformanceSuite[Batch, Batch]):
    ordinary_ids = range(START + 1, VOCAB)
    pad_id = PAD
    max_length = MAX_LENGTH
    loss_padding = {"target_ids": PAD, "real": False}  # noqa: RUF012
    prompt_padding = {"target_ids": PAD}  # noqa: RUF012
    kinds = ("language_modelling", "prefix")

    def build_model(self) -> nn.Module:
        return nn.Embedding(VOCAB, VOCAB)

    def build_loss(self) -> Loss:
        return Loss()

    def build_predictor(self) -> Predictor:
        return Predictor()

    def build_loss_collator(self, kind: Kind):
        return collate

    def build_prompt_collator(self, kind: Kind):
        return collate

    def build_likelihood(self, kind: Kind):
        return Loss(), collate


def ints(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def edits() -> Trace:
    """Row 0 becomes 7 8 9 by two insertions at once, a third in between and a write; row 1 becomes 5."""
    return Trace.of(
        [
            edits_of_step(0, INSERT, ints(0, 0, 1), ints(0, 1, 0), ints(7, 9, 4)),
            edits_of_step(1, INSERT, ints(0), ints(1), ints(3)),
            edits_of_step(2, INSERT, ints(), ints(), ints()),
            edits_of_step(3, WRITE, ints(0, 1), ints(1, 0), ints(8, 5)),
        ]
    )


def test_tables_of_edits_become_the_trace_that_replays_them() -> None:
    trace = edits()
    assert replay(trace, 0) == [7, 8, 9]
    assert replay(trace, 1) == [5]
    assert trace.step.tolist() == [0, 0, 0, 1, 3, 3]
    assert trace.operation.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_traced_prediction_is_a_prediction_and_neither_changes() -> None:
    prediction = TracedPrediction(ids=ints(7, 8, 9)[None], lengths=ints(3), nfe=ints(2), trace=edits())
    assert isinstance(prediction, Prediction)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.ids = ints()[None]  # pyright: ignore[reportAttributeAccessIssue]  # frozen
