"""The smallest family that fits every slot: it learns how often each token comes, at every length."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xlm.modules.records import SamplerLikelihood, Targets, UserEdit

PAD = 0
VOCAB_SIZE = 6


class ToyTokenizer:
    vocab_size = VOCAB_SIZE
    pad_id = PAD
    cls_id = mask_id = eos_id = bos_id = sep_id = unk_id = None

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(token) for token in ids)


def toy_rows(split: str, *, num_rows: int = 20, token: int | None = 3) -> Iterator[dict[str, object]]:
    """Row i encodes its own length: the prompt is i % 3 + 1, the target that many equal tokens.

    Without a ``token`` the rows differ in it too, so that a loss tells which rows it has seen.
    """
    offset = {"train": 0, "val": 1000, "test": 2000}[split]
    for i in range(num_rows):
        word = str(i * i % 5 + 1 if token is None else token)
        yield {"number": offset + i, "text": " ".join([word] * (i % 3 + 1))}


def toy_preprocess(row: Mapping[str, Any], tokenizer: ToyTokenizer) -> dict[str, list[int]]:
    target_ids = tokenizer.encode(row["text"])
    return {"prompt_ids": [len(target_ids)], "target_ids": target_ids}


class ToyBatch(TypedDict):
    target_ids: Tensor
    lengths: Tensor
    noise: Tensor


class ToyCollator:
    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> ToyBatch:
        targets = [example["target_ids"] for example in examples]
        return {
            "target_ids": pad_sequence(targets, batch_first=True, padding_value=PAD),
            "lengths": torch.tensor([len(target) for target in targets]),
            "noise": torch.tensor([example["seed"] % 1000 for example in examples]),
        }


class ToyModel(nn.Module):
    def __init__(self, *, vocab_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        # Cloned, as a network's output is no view of a weight.
        return self.dropout(self.bias).expand(*ids.shape, -1).clone()


@dataclass(frozen=True)
class ToyLossOutput:
    loss_sum: Tensor
    loss_count: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class ToyLikelihood:
    nll: Tensor
    num_tokens: Tensor
    nll_kind: Literal["exact", "bound"] = "exact"
    num_draws: int = 1
    models_length: bool = False


class ToyLoss:
    """Cross-entropy of every target token; weighted by the rows' noise on request."""

    def __init__(self, *, noisy: bool = False) -> None:
        self.noisy = noisy

    def nll(self, model: nn.Module, batch: ToyBatch) -> Tensor:
        log_probs = model(batch["target_ids"]).log_softmax(-1)
        nll = -log_probs.gather(-1, batch["target_ids"][..., None])[..., 0]
        return (nll * (batch["target_ids"] != PAD)).sum(-1)

    def __call__(self, model: nn.Module, batch: ToyBatch) -> ToyLossOutput:
        weights = 1 + batch["noise"] / 1000 if self.noisy else 1
        loss_sum = (self.nll(model, batch) * weights).sum()
        return ToyLossOutput(loss_sum, batch["lengths"].sum(), {"token": loss_sum})

    def likelihood(self, model: nn.Module, batch: ToyBatch) -> ToyLikelihood:
        return ToyLikelihood(self.nll(model, batch), batch["lengths"])


class ToyLossOfTwoTerms(ToyLoss):
    """The same in two parts; a name of a term may have any sign."""

    def __call__(self, model: nn.Module, batch: ToyBatch) -> ToyLossOutput:
        output = super().__call__(model, batch)
        return replace(output, terms={"a quarter": output.loss_sum / 4, "the.rest": output.loss_sum * 0.75})


@dataclass(frozen=True)
class ToyTrace:
    step: Tensor
    row: Tensor
    operation: Tensor
    position: Tensor
    token: Tensor


@dataclass(frozen=True)
class ToyPrediction:
    ids: Tensor
    lengths: Tensor
    nfe: Tensor
    trace: ToyTrace | None


class ToyPredictor:
    """Writes the likeliest token as often as the row is long, from left to right."""

    def __call__(
        self, model: nn.Module, batch: ToyBatch, seeds: Tensor, *, trace: bool = False
    ) -> ToyPrediction:
        token = model(batch["target_ids"])[0, 0].argmax()
        lengths = batch["lengths"]
        rows, places = (batch["target_ids"] != PAD).nonzero(as_tuple=True)
        edits = ToyTrace(places + 1, rows, torch.zeros_like(rows), places, token.expand_as(rows))
        ids = torch.where(batch["target_ids"] != PAD, token, PAD)
        return ToyPrediction(ids, lengths, torch.ones_like(lengths), edits if trace else None)

    def likelihood(
        self,
        model: nn.Module,
        batch: ToyBatch,
        targets: Targets,
        seeds: Tensor,
        *,
        num_draws: int = 1,
        event: str = "text",
    ) -> SamplerLikelihood:
        """0 for a row of nothing but the token that it writes, otherwise infinite."""
        token = self(model, batch, seeds).ids.amax()
        real = torch.arange(targets.ids.shape[1]) < targets.lengths.unsqueeze(1)
        possible = ((targets.ids == token) | ~real).all(1)
        log_weights = torch.zeros(num_draws, len(seeds), dtype=torch.float64).masked_fill(
            ~possible, -math.inf
        )
        return SamplerLikelihood.of(
            log_weights,
            num_tokens=targets.lengths,
            is_exact=num_draws == 1,
            models_length=event == "cells",
            smallest_gap=torch.full((len(seeds),), math.inf, dtype=torch.float64),
            nfe=torch.full_like(targets.lengths, num_draws),
        )


class EditableToy(ToyPredictor):
    """Takes an edit of the user, but no token 1."""

    def fork(self, model: nn.Module, batch: ToyBatch, seeds: Tensor, edit: UserEdit) -> ToyPrediction:
        if edit.token == 1:
            raise ValueError("token 1 is reserved")
        found = self(model, batch, seeds, trace=True)
        assert found.trace is not None
        at = (found.trace.row == edit.row) & (found.trace.position == edit.position)
        ids = found.ids.clone()
        ids[edit.row, edit.position] = edit.token
        trace = replace(found.trace, token=torch.where(at, edit.token, found.trace.token))
        return replace(found, ids=ids, trace=trace)


class ToyExactMatch:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums = {"right": torch.zeros(()), "rows": torch.zeros(())}

    def update(self, generations: Sequence[Mapping[str, Any]]) -> None:
        self.sums["right"] += sum(row["ids"] == row["reference_ids"] for row in generations)
        self.sums["rows"] += len(generations)

    def compute(self) -> dict[str, float]:
        return {"exact_match": float(self.sums["right"] / self.sums["rows"].clamp(min=1))}
