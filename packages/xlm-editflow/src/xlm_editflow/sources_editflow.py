"""Sources: the texts that edits start from.

A source is drawn for each stretch of the target that is not given: for the whole target, or for each gap
between fixed tokens. Training and generation draw it in the same way.

Your own source is a class with the three members of :class:`Source`; nothing is inherited.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from xlm.modules import require, uniform
from xlm_editflow.alignment_editflow import BLANK, pad_texts

_STREAM_SIZE = 17
_STREAM_TOKENS = 18
_STREAM_KIND = 19
_STREAM_INSERTED = 20
_NO_IDS = torch.empty(0, dtype=torch.int64)


class Source(Protocol):
    """Draws the source of each stretch."""

    reads_prompt: ClassVar[bool]
    """Whether the source depends on the prompt."""
    reads_target: ClassVar[bool]
    """Whether the source depends on the target: then there is no likelihood of the text."""

    def __call__(
        self, targets: Sequence[Tensor], prompts: Sequence[Tensor], seeds: Int[Tensor, " stretches"], /
    ) -> list[Tensor]:
        """Token ids of the source of each stretch.

        Args:
            targets: Token ids of each stretch, read if ``reads_target``.
            prompts: Token ids of the prompt of each, read if ``reads_prompt``.
            seeds: Source of all draws, shape (stretches,).
        """
        ...


@dataclass(frozen=True)
class Empty:
    """Nothing: every text is made by insertions alone."""

    reads_prompt: ClassVar[bool] = False
    reads_target: ClassVar[bool] = False

    def __call__(
        self, targets: Sequence[Tensor], prompts: Sequence[Tensor], seeds: Tensor, /
    ) -> list[Tensor]:
        """Empty texts."""
        return [_NO_IDS] * len(targets)


@dataclass(frozen=True)
class RandomTokens:
    """Noise: a length between 0 and a largest one, then each token, all with equal probability.

    Args:
        max_tokens: The largest length, at least 0.
        vocab_size: Number of token ids.
        suppressed_ids: Ids that are not drawn.

    Raises:
        ValueError: If max_tokens is below 0, or no id is left.
    """

    reads_prompt: ClassVar[bool] = False
    reads_target: ClassVar[bool] = False
    max_tokens: int
    vocab_size: int
    suppressed_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        require(self.max_tokens >= 0, "max_tokens", self.max_tokens, "at least 0")
        _possible_ids(self.vocab_size, self.suppressed_ids)

    def __call__(
        self, targets: Sequence[Tensor], prompts: Sequence[Tensor], seeds: Tensor, /
    ) -> list[Tensor]:
        """Random texts."""
        ids = _possible_ids(self.vocab_size, self.suppressed_ids)
        size = (uniform(seeds, 1, step=0, stream=_STREAM_SIZE).squeeze(1) * (self.max_tokens + 1)).long()
        tokens = _draw(ids, uniform(seeds, self.max_tokens, step=0, stream=_STREAM_TOKENS))
        return [row[:number] for row, number in zip(tokens, size.tolist(), strict=True)]


@dataclass(frozen=True)
class Prompt:
    """The prompt itself, as a text to repair or to complete; it also stays what the network conditions on."""

    reads_prompt: ClassVar[bool] = True
    reads_target: ClassVar[bool] = False

    def __call__(
        self, targets: Sequence[Tensor], prompts: Sequence[Tensor], seeds: Tensor, /
    ) -> list[Tensor]:
        """The prompts."""
        return list(prompts)


@dataclass(frozen=True)
class Corrupted:
    """The target with random mistakes, which edits repair.

    Each token is deleted or substituted by another one, and a random one is inserted on its left, with given
    probabilities. A generation starts from a corruption of its target too, drawn from its seed.

    Args:
        vocab_size: Number of token ids.
        suppressed_ids: Ids that are not drawn.
        deleted: Probability that a token is deleted.
        substituted: Probability that it is substituted; with ``deleted`` at most 1.
        inserted: Probability that a token is inserted on its left.

    Raises:
        ValueError: If a probability is outside [0, 1], or no other token is left to substitute by.
    """

    reads_prompt: ClassVar[bool] = False
    reads_target: ClassVar[bool] = True
    vocab_size: int
    suppressed_ids: Sequence[int] = ()
    deleted: float = 0.0
    substituted: float = 0.1
    inserted: float = 0.0

    def __post_init__(self) -> None:
        for name in ("deleted", "substituted", "inserted"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        both = self.deleted + self.substituted
        require(both <= 1, "deleted + substituted", both, "at most 1")
        number = len(_possible_ids(self.vocab_size, self.suppressed_ids))
        require(number > 1, "the number of ids to draw from", number, "at least 2")

    def __call__(
        self, targets: Sequence[Tensor], prompts: Sequence[Tensor], seeds: Tensor, /
    ) -> list[Tensor]:
        """Targets with mistakes."""
        padded = pad_texts(targets)
        width, ids = padded.shape[1], _possible_ids(self.vocab_size, self.suppressed_ids)
        exists = padded != BLANK
        kind = uniform(seeds, width, step=0, stream=_STREAM_KIND)
        level = uniform(seeds, width, step=0, stream=_STREAM_TOKENS)
        inserted = uniform(seeds, 2 * width, step=0, stream=_STREAM_INSERTED).unflatten(1, (width, 2))
        is_other = (kind >= self.deleted) & (kind < self.deleted + self.substituted)
        tokens = torch.where(is_other, _other(ids, padded, level), padded)
        pairs = torch.stack((_draw(ids, inserted[..., 1]), tokens), 2)
        there = torch.stack((exists & (inserted[..., 0] < self.inserted), exists & (kind >= self.deleted)), 2)
        return list(pairs[there].split(there.sum((1, 2)).tolist()))


def _possible_ids(vocab_size: int, suppressed_ids: Sequence[int]) -> Tensor:
    """Ids of the vocabulary that may be drawn.

    Raises:
        ValueError: If there is none.
    """
    ids = torch.tensor(sorted(set(range(vocab_size)) - set(suppressed_ids)), dtype=torch.int64)
    require(len(ids) > 0, "the number of ids to draw from", len(ids), "at least 1")
    return ids


def _draw(ids: Tensor, uniforms: Tensor) -> Tensor:
    """One of the ids for each number in (0, 1)."""
    return ids[(uniforms * len(ids)).long()]


def _other(ids: Tensor, tokens: Tensor, uniforms: Tensor) -> Tensor:
    """One of the ids other than the token, all with equal probability, for each number in (0, 1)."""
    place = torch.searchsorted(ids, tokens).clamp(max=len(ids) - 1)
    is_possible = ids[place] == tokens
    index = (uniforms * (len(ids) - is_possible.long())).long()
    return ids[index + (is_possible & (index >= place)).long()]
