"""Where the tokens of a sampler come from: they are drawn, or a text is forced and its probability noted.

A sampler draws content in one place, by calling its writer. Its likelihood is then the same code with another
writer: what decides the cells, their order, the filters and the end of a row stays as it is, so the value
cannot differ from the sampler. Uniform numbers that the writer does not use change no other draw, since each
belongs to a row, a step, a stream and a column (:func:`xlm.modules.uniform`).
"""

import bisect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.modules.options import require
from xlm.modules.random import row_seeds
from xlm.modules.sampling import TokenSampling


class Writer(Protocol):
    """Gives the tokens of the cells that a sampler writes."""

    def write(
        self,
        row: Int[Tensor, " cells"],
        column: Int[Tensor, " cells"],
        logits: Float[Tensor, "cells vocab"],
        uniforms: Float64[Tensor, " cells"],
        /,
    ) -> Int[Tensor, " cells"]:
        """Tokens of the cells written now, each at most once.

        Args:
            row: Row of each cell among all rows of the batch, not among those still written.
            column: Column of each cell.
            logits: Its logits, -inf at impossible tokens, without temperature and filters.
            uniforms: One number in (0, 1) per cell.
        """
        ...

    def note_gap(self, row: Int[Tensor, " rows"], gap: Callable[[], Float[Tensor, " rows"]], /) -> None:
        """Note how close a choice that depends on scores of the network is to another one.

        Args:
            row: Rows in which cells were chosen.
            gap: Computes the least distance in each row between the score of a chosen cell and that of one
                not chosen, or a threshold; infinite without an alternative. Only called if it is read.
        """
        ...


@dataclass(frozen=True)
class Draw:
    """Draws every token, as generation does."""

    sampling: TokenSampling

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """Drawn tokens."""
        return self.sampling.draw(logits, uniforms)

    def note_gap(self, row: Tensor, gap: Callable[[], Tensor], /) -> None:
        """Nothing is noted."""


@dataclass(frozen=True)
class Notes:
    """Log-probabilities of written tokens; one entry of each list per write, in order."""

    row: list[Int[Tensor, " cells"]] = field(default_factory=list[Tensor])
    column: list[Int[Tensor, " cells"]] = field(default_factory=list[Tensor])
    log_prob: list[Float64[Tensor, " cells"]] = field(default_factory=list[Tensor])
    """Nats."""

    def add(
        self, row: Int[Tensor, " cells"], column: Int[Tensor, " cells"], log_prob: Float64[Tensor, " cells"]
    ) -> None:
        """Note the tokens of one write."""
        self.row.append(row)
        self.column.append(column)
        self.log_prob.append(log_prob)

    def sums(self, start: Float64[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
        """``start`` and the log-probabilities of each row, added up in the order of the writes."""
        if not self.row:
            return start
        return start.index_add(0, torch.cat(self.row), torch.cat(self.log_prob))


@dataclass
class Recorded:
    """Draws every token and notes its log-probability, and the entropy of its distribution."""

    sampling: TokenSampling
    notes: Notes = field(default_factory=Notes)
    """Every token, in order."""
    entropy: list[Float64[Tensor, " cells"]] = field(default_factory=list[Tensor])
    """Nats; an entry for each write, as in the notes."""

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """Drawn tokens."""
        tokens = self.sampling.draw(logits, uniforms)
        log_prob, entropy = self.sampling.score_with_entropy(logits, tokens)
        self.notes.add(row, column, log_prob)
        self.entropy.append(entropy)
        return tokens

    def note_gap(self, row: Tensor, gap: Callable[[], Tensor], /) -> None:
        """Nothing is noted."""


@dataclass
class Force:
    """Writes a given text where it is known, draws elsewhere, and notes the log-probabilities of the text.

    A token that is drawn is *latent*: its probability is no factor, and the product of the others is then a
    random weight whose expectation is the probability of the text.
    """

    sampling: TokenSampling
    ids: Int[Tensor, "rows length"]
    """The text, in the columns of the sampler; without meaning where it is not known."""
    known: Bool[Tensor, "rows length"]
    """True where the text is forced."""
    notes: Notes = field(default_factory=Notes)
    """The forced tokens, in order."""
    is_latent: Bool[Tensor, " rows"] = field(init=False)
    """True at rows of which a token was drawn."""
    smallest_gap: Float64[Tensor, " rows"] = field(init=False)
    """Least gap noted for each row; infinite if none was."""

    def __post_init__(self) -> None:
        rows, device = len(self.ids), self.ids.device
        self.is_latent = torch.zeros(rows, dtype=torch.bool, device=device)
        self.smallest_gap = torch.full((rows,), math.inf, dtype=torch.float64, device=device)

    @property
    def log_probs(self) -> Float64[Tensor, " rows"]:
        """Nats of the forced tokens of each row so far; -inf as soon as one is impossible."""
        return self.notes.sums(torch.zeros_like(self.smallest_gap))

    def write(self, row: Tensor, column: Tensor, logits: Tensor, uniforms: Tensor, /) -> Tensor:
        """The tokens of the text, drawn ones where it is not known."""
        tokens = self.ids[row, column]
        known = self.known[row, column]
        if bool(known.all()):
            self.notes.add(row, column, self.sampling.score(logits, tokens))
            return tokens
        self.notes.add(row[known], column[known], self.sampling.score(logits[known], tokens[known]))
        latent = ~known
        self.is_latent[row[latent]] = True
        return tokens.masked_scatter(latent, self.sampling.draw(logits[latent], uniforms[latent]))

    def note_gap(self, row: Tensor, gap: Callable[[], Tensor], /) -> None:
        """Keep the least gap of each row."""
        self.smallest_gap[row] = self.smallest_gap[row].minimum(gap().to(torch.float64))


def seeds_of_draw(draw: int, seeds: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Seeds of the rows in one of several draws of a likelihood, from 0."""
    return row_seeds(draw, 0, seeds)


def check_draws(num_draws: int, event: str) -> None:
    """Refuse options of a likelihood that are outside their range.

    Raises:
        ValueError: If there is no draw, or the event is neither "text" nor "cells".
    """
    require(num_draws >= 1, "num_draws", num_draws, "at least 1")
    require(event in ("text", "cells"), "event", event, "'text' or 'cells'")


def draw_places(
    given: list[int], is_open: list[bool], target: list[int], uniforms: list[float]
) -> tuple[list[int], int]:
    """Draw the places of given tokens in a target, uniformly from all that their closed slots allow.

    Args:
        given: The tokens.
        is_open: Whether the slot left of the first one and right of each may receive tokens.
        target: The text.
        uniforms: One number in (0, 1) per token.

    Returns:
        The places, and the number of all that are allowed; 0 if the target does not hold the tokens.
    """
    size = len(target)
    # counts[j]: of the tokens from this one on, with it at place j.
    counts = [0] * size + [1]
    tables: list[list[int]] = []
    for token, may_grow in zip(reversed(given), reversed(is_open[1:]), strict=True):
        behind = list(itertools.accumulate(reversed(counts)))[::-1] if may_grow else counts
        counts = [behind[place + 1] * (target[place] == token) for place in range(size)] + [0]
        tables.append(counts)
    tables.reverse()
    places: list[int] = []
    total = sum(tables[0]) if is_open[0] else tables[0][0]
    if total == 0:
        return [], 0
    for number, table in enumerate(tables):
        start = places[-1] + 1 if places else 0
        allowed = range(start, size if is_open[number] else start + 1)
        sums = list(itertools.accumulate(table[place] for place in allowed))
        # The numbers of places exceed every float in long texts: the comparison is one of integers.
        numerator, denominator = uniforms[number].as_integer_ratio()
        places.append(allowed[bisect.bisect(sums, numerator * sums[-1] // denominator)])
    return places, total
