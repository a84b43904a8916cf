"""Tiny languages with a known distribution, and networks that have it: what a loss should find."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

IMPOSSIBLE = -100.0
"""Log-probability of what a network excludes; finite, so that 0 times it is 0."""
LEAST = -4.0
"""Least logit of a network with disorder, before the disorder."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a tiny vocabulary; the tokens of texts are all those that have no other role."""

    size: int = 6
    """Number of ids."""
    pad_id: int = 0
    mask_id: int | None = 1
    eos_id: int | None = 2
    other_ids: tuple[int, ...] = ()
    """Further ids that never stand in a text."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of texts."""
        special = {self.pad_id, self.mask_id, self.eos_id, *self.other_ids}
        return tuple(token for token in range(self.size) if token not in special)


@dataclass(frozen=True)
class Texts:
    """Texts, padded on the right."""

    ids: Tensor
    """(texts, width) int64."""
    lengths: Tensor
    """(texts,) int64."""

    @staticmethod
    def every(vocabulary: Vocabulary, lengths: Sequence[int]) -> "Texts":
        """Every text of these lengths."""
        width = max(lengths)
        rows = [
            [*text, *(vocabulary.pad_id,) * (width - length)]
            for length in lengths
            for text in itertools.product(vocabulary.tokens, repeat=length)
        ]
        sizes = [length for length in lengths for _ in range(len(vocabulary.tokens) ** length)]
        return Texts(torch.tensor(rows).view(len(rows), width), torch.tensor(sizes))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Tensor | slice) -> "Texts":
        return Texts(self.ids[rows], self.lengths[rows])

    def narrow(self) -> "Texts":
        """Without columns that are padding in every row."""
        return Texts(self.ids[:, : int(self.lengths.max())], self.lengths)

    def times(self, number: int) -> "Texts":
        """Each text ``number`` times, one after another."""
        return Texts(self.ids.repeat_interleave(number, 0), self.lengths.repeat_interleave(number))

    def index_of(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Index of each of the texts (rows, columns) with lengths (rows,); -1 for one that is not here."""
        width = self.ids.shape[1]
        if bool((lengths > width).any()):
            return torch.where(lengths > width, -1, self.index_of(ids, lengths.clamp(max=width)))
        columns = torch.arange(width)
        padded = nn.functional.pad(ids, (0, max(0, width - ids.shape[1])))[:, :width]
        beyond = columns >= lengths.unsqueeze(1)
        same = (padded.unsqueeze(1) == self.ids) | beyond.unsqueeze(1)
        found = same.all(2) & (lengths.unsqueeze(1) == self.lengths)
        return torch.where(found.any(1), found.int().argmax(1), -1)

    def show(self, row: int) -> str:
        """The ids of a text."""
        return str(tuple(self.ids[row, : int(self.lengths[row])].tolist()))


@dataclass(frozen=True)
class Language:
    """All texts of some lengths, each with its probability: a multiple of 1 / num_rows, and none is 0."""

    vocabulary: Vocabulary
    texts: Texts
    counts: Tensor
    """(texts,) int64: rows of each text in a data set with exactly this distribution."""

    @staticmethod
    def draw(vocabulary: Vocabulary, lengths: Sequence[int], seed: int) -> "Language":
        """A language without structure, so that no network is right by accident."""
        texts = Texts.every(vocabulary, lengths)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(len(texts), generator=generator, dtype=torch.float64)
        return Language(vocabulary, texts, 1 + (-3 * drawn.log()).long())

    @cached_property
    def probabilities(self) -> Tensor:
        """(texts,) float64."""
        return self.counts / self.counts.sum(dtype=torch.float64)

    def entropy(self, *, with_length: bool) -> float:
        """Entropy of a text in nats, or, without the length, of a text whose length is given."""
        whole = float(-(self.probabilities * self.probabilities.log()).sum())
        if with_length:
            return whole
        groups = [self.probabilities[self.texts.lengths == length].sum() for length in self.lengths]
        return whole + sum(float(group * group.log()) for group in groups)

    @property
    def lengths(self) -> list[int]:
        """The lengths that occur."""
        return sorted(set(self.texts.lengths.tolist()))


class Posterior(nn.Module):
    """A network of a language: logits of each cell, given the other cells or those to the left of it.

    Args:
        language: The language whose probabilities it has.
        order: ``masked``: the logits of cell i are conditioned on all cells that are not MASK, cell i itself
            included, as those of a trained network are. ``prefix``: on the cells left of it; there is one
            more column of logits, for what follows the last cell.
        sharpness: Factor of the logits; 1 is the truth.
        disorder: Standard deviation of what is added to the logits of each state: with it, the factors of a
            text depend on the order in which its tokens are written.
        seed: Of the disorder.
    """

    def __init__(
        self,
        language: Language,
        *,
        order: str,
        sharpness: float = 1.0,
        disorder: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.language, self.order, self.sharpness, self.disorder = language, order, sharpness, disorder
        self._generator_seed = seed

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (rows, cells or cells + 1, vocabulary), float64, of ids (rows, cells)."""
        logits = self._masked(ids) if self.order == "masked" else self._prefix(ids)
        if self.disorder == 0:
            return self.sharpness * logits
        logits = logits.clamp(min=LEAST)  # a network that is not trained excludes nothing
        cells = ids.shape[1]
        states = self.language.vocabulary.size**cells
        generator = torch.Generator().manual_seed(self._generator_seed)
        table = torch.randn((states, *logits.shape[1:]), generator=generator, dtype=torch.float64)
        if self.order == "prefix":  # cell i is conditioned on the cells left of it
            codes = self._codes(ids)
            added = torch.stack([table[codes[:, i], i] for i in range(cells + 1)], dim=1)
        else:
            added = table[self._codes(ids)[:, -1]]
        return self.sharpness * logits + self.disorder * added

    def _codes(self, ids: Tensor) -> Tensor:
        """A number for each prefix of each row, (rows, cells + 1)."""
        weights = self.language.vocabulary.size ** torch.arange(ids.shape[1])
        return nn.functional.pad((ids * weights).cumsum(1), (1, 0))

    def _masked(self, ids: Tensor) -> Tensor:
        language, vocabulary = self.language, self.language.vocabulary
        is_padding = ids == vocabulary.pad_id
        lengths = (~is_padding).sum(1)
        known = language.texts.ids[:, : ids.shape[1]]
        fits = (
            (ids == vocabulary.mask_id).unsqueeze(1) | (ids.unsqueeze(1) == known) | is_padding.unsqueeze(1)
        )
        weight = (fits.all(2) & (lengths.unsqueeze(1) == language.texts.lengths)) * language.probabilities
        one_hot = nn.functional.one_hot(known, vocabulary.size).double()
        mass = torch.einsum("rt,tcv->rcv", weight, one_hot)
        logits = (mass / mass.sum(2, keepdim=True)).log().nan_to_num(IMPOSSIBLE, neginf=IMPOSSIBLE)
        return logits.masked_fill(is_padding.unsqueeze(2), -math.log(vocabulary.size))

    def _prefix(self, ids: Tensor) -> Tensor:
        language, vocabulary = self.language, self.language.vocabulary
        cells, width = ids.shape[1], language.texts.ids.shape[1]
        end = vocabulary.pad_id if vocabulary.eos_id is None else vocabulary.eos_id
        known = torch.full((len(language.texts), max(cells, width) + 1), end)
        known[:, :width] = torch.where(language.texts.ids == vocabulary.pad_id, end, language.texts.ids)
        columns: list[Tensor] = []
        for column in range(cells + 1):
            fits = (ids[:, None, :column] == known[:, :column]).all(2) * language.probabilities
            mass = fits @ nn.functional.one_hot(known[:, column], vocabulary.size).double()
            columns.append((mass / mass.sum(1, keepdim=True)).log())
        return torch.stack(columns, dim=1).nan_to_num(IMPOSSIBLE, neginf=IMPOSSIBLE)
