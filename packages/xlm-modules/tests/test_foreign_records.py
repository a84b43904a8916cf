"""A family with records of its own, and nothing of `xlm.modules.records`, passes the conformance suite.

It predicts each token of the target from the last token of the prompt alone.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import TokenSampling, check_examples, check_vocabulary, uniform
from xlm.modules.testing import ConformanceSuite, Kind

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
