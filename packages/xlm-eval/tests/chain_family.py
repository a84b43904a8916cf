"""A family whose likelihood is a product of table entries: p(letter | the one before it), up to an end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

PAD, BOS, END = 0, 1, 2
LETTERS = "abcd "
VOCAB_SIZE = 3 + len(LETTERS)


class ChainTokenizer:
    vocab_size = VOCAB_SIZE
    pad_id, bos_id, eos_id = PAD, BOS, END
    cls_id = mask_id = sep_id = unk_id = None

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) + 3 for letter in text]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[token - 3] if token > END else f"<{token}>" for token in ids)


def encode_row(row: Mapping[str, Any], tokenizer: ChainTokenizer) -> dict[str, list[int]]:
    return {"target_ids": tokenizer.encode("abcd"[: 1 + row["number"] % 4])}


@dataclass
class Rows:
    ids: Tensor
    num_given: Tensor
    """Tokens that are given, BOS among them."""
    lengths: Tensor
    num_tokens: Tensor
    num_prompt: Tensor


class ChainCollator:
    """Rows of BOS, prompt, target and, for ``end``, END."""

    def __init__(self, *, end: bool) -> None:
        self.end = end

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Rows:
        rows: list[Tensor] = []
        given: list[int] = []
        tokens: list[int] = []
        for example in examples:
            prompt = example.get("prompt_ids", torch.zeros(0, dtype=torch.int64))
            target = example["target_ids"]
            fixed = int(example["fixed"].sum()) if "fixed" in example else 0
            kept = target if self.end else target[:fixed]
            rows.append(
                torch.cat((torch.tensor([BOS]), prompt, kept, torch.tensor([END] if self.end else [])))
            )
            given.append(1 + len(prompt) + fixed)
            tokens.append(len(target) - fixed)
        lengths = [len(row) for row in rows]
        return Rows(
            ids=pad_sequence(rows, batch_first=True, padding_value=PAD).long(),
            num_given=torch.tensor(given),
            lengths=torch.tensor(lengths),
            num_tokens=torch.tensor(tokens),
            num_prompt=torch.tensor([len(example.get("prompt_ids", ())) for example in examples]),
        )


class ChainModel(nn.Module):
    """Log-probabilities of the next token from a table; a parameter that changes nothing."""

    table: Tensor

    def __init__(self, *, vocab_size: int = VOCAB_SIZE) -> None:
        super().__init__()
        table = 2 * torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(1)).double()
        table[:, [PAD, BOS]] = -torch.inf
        self.register_buffer("table", table.log_softmax(1))
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids] + 0 * self.nothing


@dataclass(frozen=True)
class ChainLossOutput:
    loss_sum: Tensor
    loss_count: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class ChainLikelihood:
    nll: Tensor
    num_tokens: Tensor
    is_greedy: Tensor
    nll_kind: Literal["exact", "bound"] = "bound"
    num_draws: int = 4
    models_length: bool = True


class ChainLoss:
    """Scores whole texts; calls its value a bound."""

    def __call__(self, model: nn.Module, batch: Rows) -> ChainLossOutput:
        loss = self._scored(model, batch, ends=0)[0].sum()
        return ChainLossOutput(loss, batch.num_tokens.sum(), {"all": loss})

    def likelihood(self, model: nn.Module, batch: Rows) -> ChainLikelihood:
        return ChainLikelihood(self._scored(model, batch, ends=0)[0], batch.num_tokens, torch.zeros(0))

    def _scored(self, model: nn.Module, batch: Rows, *, ends: int) -> tuple[Tensor, Tensor]:
        found = model(batch.ids[:, :-1])
        following = batch.ids[:, 1:]
        place = torch.arange(1, batch.ids.shape[1])
        counts = (place >= batch.num_given[:, None]) & (place < batch.lengths[:, None] - ends)
        nats = torch.where(counts, -found.gather(2, following[..., None])[..., 0], 0.0)
        return nats.sum(1), ((found.argmax(2) == following) | ~counts).all(1)


class OpenChainLoss(ChainLoss):
    """Scores beginnings of texts too."""

    def prefix_likelihood(self, model: nn.Module, batch: Rows) -> ChainLikelihood:
        nll, is_greedy = self._scored(model, batch, ends=1)
        return ChainLikelihood(nll, batch.num_tokens, is_greedy, "exact", 1, models_length=False)


@dataclass(frozen=True)
class ChainPrediction:
    ids: Tensor
    lengths: Tensor
    nfe: Tensor
    trace: None = None


class ChainPredictor:
    """Writes the most probable letter, or draws one, up to the end or seven letters in all."""

    def __init__(self, *, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def __call__(
        self, model: nn.Module, batch: Rows, seeds: Tensor, *, trace: bool = False
    ) -> ChainPrediction:
        rows: list[Tensor] = []
        columns = (batch.lengths.tolist(), batch.num_prompt.tolist(), seeds.tolist())
        for ids, length, num_prompt, seed in zip(batch.ids, *columns, strict=True):
            generator = torch.Generator().manual_seed(seed)
            row: list[int] = ids[:length].tolist()
            while len(row) < 8 and row[-1] != END:
                found = model(torch.tensor([row]))[0, -1]
                if self.temperature:
                    chances = (found / self.temperature).softmax(0)
                    row.append(int(torch.multinomial(chances, 1, generator=generator)))
                else:
                    row.append(int(found.argmax()))
            rows.append(torch.tensor(row[1 + num_prompt :]))
        lengths = torch.tensor([len(row) for row in rows])
        return ChainPrediction(pad_sequence(rows, batch_first=True), lengths, lengths)
