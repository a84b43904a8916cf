"""The rows while they grow, and where insertions come from: they are drawn, or a given text is forced."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from xlm.modules import Columns, TokenSampling, draw_places, logits_in_pieces, suppress_tokens
from xlm.modules.records import INSERT, Targets, edits_of_step
from xlm_ilm.types_ilm import ILMPromptBatch

_PAIRS_AT_ONCE = 2**20
"""Pairs of slot and token of the rows whose log-probabilities are computed together."""


@dataclass(frozen=True)
class Scored:
    """The open slots of some rows, read out."""

    scores: Tensor
    """Log-weights of slots (cells,), or of pairs (cells, vocab)."""
    hidden: Tensor
    """(cells, d_model), from which the logits of the slot that is drawn are made once more."""
    head: nn.Module


@dataclass(frozen=True)
class Cells:
    """The open slots of some rows, numbered row by row, in the order of the columns."""

    flat: Tensor
    """(cells,) index into the rows * length cells."""
    row: Tensor
    """(cells,)"""
    slot: Tensor
    """(cells,) number of the slot among the open ones of its row."""
    first: Tensor
    """(rows,) number of the row's first cell."""
    column: Tensor
    """(rows, slots) column of each slot."""
    exists: Tensor
    """(rows, slots) False beyond the number of open slots of a row."""

    @staticmethod
    def of(open_slots: Tensor) -> "Cells":
        """The cells that a table (rows, length) marks."""
        num_open = open_slots.sum(1)
        row, column = open_slots.nonzero(as_tuple=True)
        first = num_open.cumsum(0) - num_open
        slot = torch.arange(len(row), device=row.device) - first[row]
        exists = torch.arange(int(num_open.max()), device=row.device) < num_open.unsqueeze(1)
        columns = torch.zeros(exists.shape, dtype=torch.int64, device=row.device)
        columns[row, slot] = column
        flat = row * open_slots.shape[1] + column
        return Cells(flat=flat, row=row, slot=slot, first=first, column=columns, exists=exists)

    def spread(self, values: Tensor) -> Tensor:
        """Values of cells (cells, ...) by row and slot (rows, slots, ...); -inf where there is no slot."""
        table = values.new_full((*self.exists.shape, *values.shape[1:]), -math.inf)
        table[self.row, self.slot] = values
        return table


@dataclass
class Text:
    """The rows while they grow: tokens in the order of insertion, with their positions."""

    input_ids: Tensor
    """(rows, capacity)"""
    position_ids: Tensor
    """(rows, capacity); without meaning from column ``size`` on, as the other two of this shape."""
    open_slots: Tensor
    """(rows, capacity)"""
    size: Tensor
    """(rows,) columns in use."""
    budget: Tensor
    """(rows,) tokens that may still be inserted."""
    target_start: Tensor
    """(rows,) position of the first target token."""

    @staticmethod
    def start(batch: ILMPromptBatch, prompt: Tensor, max_new_tokens: int | None) -> "Text":
        """The rows without the columns of the ``prompt`` (rows, length)."""
        columns = Columns.of(batch["attention_mask"] & ~prompt)
        rows, length = columns.source.shape
        budget = batch["budget"] if max_new_tokens is None else batch["budget"].clamp(max=max_new_tokens)
        capacity = length + (max(int(budget.max()), 0) if rows > 0 else 0)
        return Text(
            input_ids=_widen(columns.take(batch["input_ids"]), capacity),
            position_ids=_widen(columns.source, capacity),
            open_slots=_widen(columns.take(batch["open_slots"]), capacity),
            size=columns.exists.sum(1),
            budget=budget.clone(),
            target_start=batch["target_start"],
        )

    def growing(self, rows: Tensor) -> Tensor:
        """Those of the ``rows`` that can take another token."""
        return rows[(self.budget[rows] > 0) & self.open_slots[rows].any(1)]

    def window(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and positions of the rows, as wide as the longest of them."""
        size = self.size[rows]
        width = int(size.max())
        attention_mask = torch.arange(width, device=size.device) < size.unsqueeze(1)
        return self.input_ids[rows, :width], attention_mask, self.position_ids[rows, :width]

    def insert(self, rows: Tensor, column: Tensor, token: Tensor) -> Tensor:
        """Insert a token right of a column into each of the rows; return the gaps of the targets (rows,)."""
        position = self.position_ids[rows, column] + 1
        old = self.position_ids[rows]
        self.position_ids[rows] = old + (old >= position.unsqueeze(1))
        end = self.size[rows]
        self.input_ids[rows, end] = token
        self.position_ids[rows, end] = position
        self.open_slots[rows, end] = True
        self.size[rows] += 1
        self.budget[rows] -= 1
        return position - self.target_start[rows]

    def targets(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """Target tokens in the order of the text, padded (rows, width), and their number (rows,)."""
        row, column, place = self._target_cells()
        lengths = torch.bincount(row, minlength=len(self.size))
        ids = self.input_ids.new_full((len(lengths), int(lengths.max()) if len(lengths) > 0 else 0), pad_id)
        ids[row, place] = self.input_ids[row, column]
        return ids, lengths

    def given_edits(self) -> Tensor:
        """Insertions that build the given targets, from left to right."""
        row, column, place = self._target_cells()
        return edits_of_step(0, INSERT, row, place, self.input_ids[row, column])

    def _target_cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and place in its target of each target token, (tokens,) each."""
        place = self.position_ids - self.target_start.unsqueeze(1)
        used = torch.arange(place.shape[1], device=place.device) < self.size.unsqueeze(1)
        row, column = (used & (place >= 0)).nonzero(as_tuple=True)
        return row, column, place[row, column]


@dataclass(frozen=True)
class Filters:
    """How a slot and a token are drawn."""

    slot: TokenSampling
    """Of the slot, from its log-weight."""
    token: TokenSampling
    """Of the token given the slot; of the pair if ``draws_pairs``."""
    draws_pairs: bool
    """Whether slot and token are drawn from one table."""
    suppressed_ids: list[int]


@dataclass(frozen=True)
class Pairs:
    """The distribution of slot and token in some rows, after one evaluation."""

    cells: Cells
    scores: Tensor
    """(rows, slots) log-weights of slots, or (rows, slots, vocab) of pairs; -inf where there is no slot."""
    scored: Scored
    filters: Filters

    def draw(self, able: Tensor, free: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """One slot, as its number among the row's open slots, and one token for each of the ``able`` rows."""
        filters = self.filters
        if filters.draws_pairs:
            pair = filters.token.draw(self._free_scores(able, free), uniforms[:, 0])
            vocab = self.scores.shape[2]
            return pair // vocab, pair % vocab
        slot = filters.slot.draw(self._free_scores(able, free), uniforms[:, 0])
        hidden = self.scored.hidden[self.cells.first[able] + slot]
        logits = suppress_tokens(self.scored.head(hidden), filters.suppressed_ids)
        return slot, filters.token.draw(logits, uniforms[:, 1])

    def score(self, able: Tensor, free: Tensor, row: Tensor, slot: Tensor, token: Tensor) -> Tensor:
        """(pairs,) nats with which :meth:`draw` draws pairs; ``row`` numbers the ``able`` rows."""
        filters = self.filters
        if filters.draws_pairs:
            num_able, (_, slots, vocab) = len(able), self.scores.shape
            found = torch.empty_like(row, dtype=torch.float64)
            for rows in torch.arange(num_able, device=row.device).split(
                max(_PAIRS_AT_ONCE // (slots * vocab), 1)
            ):
                log_probs = filters.token.log_probs(self._free_scores(able[rows], free[rows]))
                mine = (row >= rows[0]) & (row <= rows[-1])
                found[mine] = log_probs[row[mine] - rows[0], slot[mine] * vocab + token[mine]]
            return found
        of_slot = filters.slot.log_probs(self._free_scores(able, free))[row, slot]
        cell, number = torch.unique(self.cells.first[able[row]] + slot, return_inverse=True)
        of_token = torch.empty_like(of_slot)
        first = 0
        for logits in logits_in_pieces(self.scored.hidden[cell], self.scored.head, filters.suppressed_ids):
            mine = (number >= first) & (number < first + len(logits))
            of_token[mine] = filters.token.log_probs(logits)[number[mine] - first, token[mine]]
            first += len(logits)
        return of_slot + of_token

    def _free_scores(self, able: Tensor, free: Tensor) -> Tensor:
        """(able, slots) or (able, slots * vocab), -inf at slots that are not ``free`` (able, slots)."""
        scores = self.scores[able]
        closed = ~free.view(*free.shape, *([1] * (scores.ndim - 2)))
        return scores.masked_fill(closed, -math.inf).flatten(1)


class Insertions(Protocol):
    """Decides whether rows stop, and what is inserted into them."""

    def stop(self, rows: Tensor, chance: Tensor, gap: Tensor, uniforms: Tensor, /) -> Tensor:
        """(rows,) True where a row stops.

        Args:
            rows: (rows,) rows of the batch.
            chance: (rows,) probability that each stops.
            gap: (rows,) distance of the network's probability to a threshold; infinite if there is none.
            uniforms: (rows,) numbers in (0, 1).
        """
        ...

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, able: Tensor, free: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """(able,) a free slot, as its number among the row's open slots, and a token.

        Args:
            text: All rows as they are now.
            rows: (rows,) rows of the batch that were evaluated.
            pairs: What the network says about them.
            able: (able,) numbers of those among them that get a token.
            free: (able, slots) their slots that may receive one.
            uniforms: (able, 2) numbers in (0, 1).
        """
        ...


class Drawn:
    """Stops and insertions are drawn, as generation does."""

    def stop(self, rows: Tensor, chance: Tensor, gap: Tensor, uniforms: Tensor, /) -> Tensor:
        """A draw."""
        return uniforms < chance

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, able: Tensor, free: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """A draw of each pair."""
        return pairs.draw(able, free, uniforms)


@dataclass
class Guided:
    """Inserts the tokens of a text in a random order, guided by the sampler, with the weight of that order.

    Of the missing tokens j whose slot is free, one is drawn with probability a_j / A, where a_j is the
    sampler's probability of inserting j into its slot and A the sum of these, and the weight is multiplied by
    A; as well as by the probability that the row stops where it does. The expectation of the weight is the
    probability of the text, summed over all orders: each order of the tokens is one path of the sampler, with
    equal tokens too.
    """

    ids: Int[Tensor, "rows width"]
    exists: Bool[Tensor, "rows width"]
    present: Bool[Tensor, "rows width"]
    """True at tokens in the row."""
    num_missing: Int[Tensor, " rows"]
    """Tokens to insert."""
    log_weight: Float64[Tensor, " rows"]
    """Nats, so far."""
    smallest_gap: Float64[Tensor, " rows"] = field(init=False)
    """Least distance of a probability of stopping to its threshold."""

    def __post_init__(self) -> None:
        self.smallest_gap = torch.full_like(self.log_weight, math.inf)

    @staticmethod
    def start(batch: ILMPromptBatch, targets: Targets, uniforms: Float64[Tensor, "rows given"]) -> "Guided":
        """Nothing but the given tokens is in the rows.

        Where these fit to several places of the target, one fit is drawn, and its weight is their number.

        Raises:
            ValueError: If a target does not hold the given tokens of its row.
        """
        width = max(targets.ids.shape[1], 1)
        ids = nn.functional.pad(targets.ids, (0, width - targets.ids.shape[1]))
        exists = torch.arange(width, device=ids.device) < targets.lengths.unsqueeze(1)
        present, log_weight = torch.zeros_like(exists), torch.zeros(len(ids), dtype=torch.float64)
        num_given = batch["attention_mask"].sum(1) - batch["target_start"]
        for row in num_given.nonzero().squeeze(1).tolist():
            first, size = int(batch["target_start"][row]), int(num_given[row])
            places, number = draw_places(
                given=batch["input_ids"][row, first : first + size].tolist(),
                is_open=batch["open_slots"][row, first - 1 : first + size].tolist(),
                target=ids[row, : int(targets.lengths[row])].tolist(),
                uniforms=uniforms[row].tolist(),
            )
            if number == 0:
                raise ValueError(
                    f"target {row} does not hold the given tokens of its row, in their order and gaps"
                )
            present[row, places] = True
            log_weight[row] = math.log(number)
        missing = (exists & ~present).sum(1)
        return Guided(ids, exists, present, missing, log_weight.to(ids.device))

    def finish(self) -> Float64[Tensor, " rows"]:
        """The log-weights; -inf for a text that the row did not end with."""
        return self.log_weight.masked_fill(~self._is_complete(), -math.inf)

    def stop(self, rows: Tensor, chance: Tensor, gap: Tensor, uniforms: Tensor, /) -> Tensor:
        """A row stops when its text is complete, or has become impossible."""
        complete = self._is_complete()[rows]
        self.log_weight[rows] += torch.where(complete, chance, 1 - chance).log()
        self.smallest_gap[rows] = self.smallest_gap[rows].minimum(gap)
        return complete | (self.log_weight[rows] == -math.inf)

    def choose(
        self, text: Text, rows: Tensor, pairs: Pairs, able: Tensor, free: Tensor, uniforms: Tensor, /
    ) -> tuple[Tensor, Tensor]:
        """A missing token and its slot; of a row that has none, anything, and its text is impossible."""
        mine = rows[able]
        slot = self._slots(text, mine, pairs.cells.column[able], free)
        row, place = (slot >= 0).nonzero(as_tuple=True)
        log_probs = torch.full(slot.shape, -math.inf, dtype=torch.float64, device=slot.device)
        token = self.ids[mine]
        log_probs[row, place] = pairs.score(able, free, row, slot[row, place], token[row, place])
        total = log_probs.logsumexp(1)
        self.log_weight[mine] += total
        possible = total > -math.inf
        shares = (log_probs - total.where(possible, 0.0).unsqueeze(1)).exp()
        chosen = TokenSampling().draw(shares.log().masked_fill(~possible.unsqueeze(1), 0.0), uniforms[:, 0])
        index = torch.arange(len(mine), device=mine.device)
        self.present[mine[possible], chosen[possible]] = True
        slot = slot[index, chosen].where(possible, free.byte().argmax(1))
        return slot, token[index, chosen]

    def _slots(self, text: Text, rows: Tensor, columns: Tensor, free: Tensor) -> Tensor:
        """(rows, width) the free slot in ``columns`` (rows, slots) of each missing token; -1: none."""
        position, size = text.position_ids[rows], text.size[rows]
        used = torch.arange(position.shape[1], device=position.device) < size.unsqueeze(1)
        slot_at = torch.full((len(rows), int(position.max()) + 1), -1, device=position.device)
        position_of_slot = position.gather(1, columns)
        row, slot = (free & used.gather(1, columns)).nonzero(as_tuple=True)
        slot_at[row, position_of_slot[row, slot]] = slot
        # Its slot is that of the last token on its left that is in the row.
        on_left = self.present[rows].cumsum(1) - self.present[rows].long()
        wanted = (text.target_start[rows].unsqueeze(1) - 1 + on_left).clamp(max=slot_at.shape[1] - 1)
        is_missing = self.exists[rows] & ~self.present[rows]
        return slot_at.gather(1, wanted).masked_fill(~is_missing, -1)

    def _is_complete(self) -> Tensor:
        return (self.present | ~self.exists).all(1)


def _widen(table: Tensor, capacity: int) -> Tensor:
    """(rows, capacity) copy with zeros, or False, in the new columns."""
    wide = table.new_zeros(len(table), capacity)
    wide[:, : table.shape[1]] = table
    return wide
