"""The rows while they grow, and the distribution of the next insertions into them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xlm.modules import Columns, TokenSampling, categorical, entropy, logits_in_pieces, suppress_tokens
from xlm.modules.records import INSERT, WRITE, UserEdit, edits_of_step
from xlm_did.types_did import DIDPromptBatch

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


# Copied from xlm_ilm.insertion_ilm.Cells
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


# Copied from xlm_ilm.insertion_ilm.Text
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
    def start(batch: DIDPromptBatch, prompt: Tensor, max_new_tokens: int | None) -> "Text":
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

    def write(self, edit: UserEdit) -> Tensor:
        """Write a token of the user over another one, and return the edit (5, 1).

        Raises:
            ValueError: If the target has no such position.
        """
        position = self.target_start[edit.row] + edit.position
        column = torch.arange(self.position_ids.shape[1], device=position.device)
        at = (self.position_ids[edit.row] == position) & (column < self.size[edit.row])
        if edit.position < 0 or not bool(at.any()):
            raise ValueError(f"the text has no position {edit.position} in step {edit.step}")
        self.input_ids[edit.row, at] = edit.token
        row, place, token = torch.tensor([[edit.row], [edit.position], [edit.token]], device=position.device)
        return edits_of_step(edit.step, WRITE, row, place, token)

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
    is_joint: bool
    """Whether the log-weight of a slot is that of its tokens as they are drawn."""
    suppressed_ids: list[int]

    def read(self, hidden: Tensor, head: nn.Module) -> Scored:
        """The readout: log-weights of slots (cells,), without a table of logits, or pairs (cells, vocab)."""
        if self.draws_pairs:
            scores = suppress_tokens(head(hidden), self.suppressed_ids)
        else:
            pieces = self.logits(hidden, head)
            scores = torch.cat([self._slot_scores(logits) for logits in pieces])
        return Scored(scores, hidden, head)

    # Copied from xlm_ilm.insertion_ilm.Filters.logits
    def logits(self, hidden: Tensor, head: nn.Module) -> Iterable[Tensor]:
        """Logits (piece, vocab) of some cells after those of the ones before them.

        Without gradients they share one buffer.
        """
        if torch.is_grad_enabled():
            return [suppress_tokens(head(hidden), self.suppressed_ids)]
        return logits_in_pieces(hidden, head, self.suppressed_ids)

    # Copied from xlm_ilm.insertion_ilm.Filters._slot_scores
    def _slot_scores(self, logits: Tensor) -> Tensor:
        """(cells,) log-weight of each slot."""
        if self.is_joint and self.token.is_greedy:
            return logits.amax(-1)
        if torch.is_grad_enabled():
            # What autograd keeps must not be written over.
            logits = logits.clone()
        if self.is_joint and self.token.temperature != 1:
            logits.div_(self.token.temperature)
        # Finite also in a slot without a possible token, whose weight is 0.
        highest = logits.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        return logits.sub_(highest).exp_().sum(-1).log() + highest.squeeze(-1)


@dataclass(frozen=True)
class Pairs:
    """The distribution of slot and token in some rows, after one evaluation."""

    cells: Cells
    scores: Tensor
    """(rows, slots) log-weights of slots, or (rows, slots, vocab) of pairs; -inf where there is no slot."""
    scored: Scored
    filters: Filters

    def draw(self, able: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """One slot, as its number among the row's open slots, and one token for each of the ``able`` rows."""
        filters = self.filters
        if filters.draws_pairs:
            pair = filters.token.draw(self.scores[able].flatten(1), uniforms[:, 0])
            vocab = self.scores.shape[2]
            return pair // vocab, pair % vocab
        slot = filters.slot.draw(self.scores[able], uniforms[:, 0])
        hidden = self.scored.hidden[self.cells.first[able] + slot]
        logits = suppress_tokens(self.scored.head(hidden), filters.suppressed_ids)
        return slot, filters.token.draw(logits, uniforms[:, 1])

    def draw_many(
        self, number: Tensor, most: int, uniforms: Callable[[int], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(rows, most) slots and tokens of ``number`` (rows,) independent draws for each row, 0 beyond them.

        ``uniforms`` gives so many numbers in (0, 1) for each row.
        """
        slots, tokens = (number.new_zeros(len(number), most) for _ in range(2))
        of_pairs = uniforms(2 * most).unflatten(1, (most, 2))
        for index in range(most):
            able = (number > index).nonzero().squeeze(1)
            slots[able, index], tokens[able, index] = self.draw(able, of_pairs[able, index])
        return slots, tokens

    def draw_tokens(self, row: Tensor, slot: Tensor, uniforms: Tensor) -> Tensor:
        """(pairs,) tokens of different slots, drawn with one number in (0, 1) each."""
        drawn = torch.zeros_like(row)
        if self.filters.draws_pairs:
            for rows in torch.arange(len(self.scores), device=row.device).split(self._rows_at_once()):
                mine = (row >= rows[0]) & (row <= rows[-1])
                of_slot = self._pair_log_probs(self.scores[rows])[row[mine] - rows[0], slot[mine]]
                drawn[mine] = categorical(of_slot, uniforms[mine]) if len(of_slot) > 0 else 0
        elif len(row) > 0:
            hidden = self.scored.hidden[self.cells.first[row] + slot]
            first = 0
            for logits in self.filters.logits(hidden, self.scored.head):
                last = first + len(logits)
                drawn[first:last] = self.filters.token.draw(logits, uniforms[first:last])
                first = last
        return drawn

    def slot_log_probs(self) -> Tensor:
        """(rows, slots) nats with which :meth:`draw` draws each slot."""
        if self.filters.draws_pairs:
            pieces = self.scores.split(self._rows_at_once())
            return torch.cat([self._pair_log_probs(scores).logsumexp(2) for scores in pieces])
        return self.filters.slot.log_probs(self.scores)

    def score(self, row: Tensor, slot: Tensor, token: Tensor) -> Tensor:
        """(pairs,) nats with which :meth:`draw` draws pairs of rows, slots and tokens."""
        filters = self.filters
        if filters.draws_pairs:
            num_rows, _, vocab = self.scores.shape
            found = torch.empty_like(row, dtype=torch.float64)
            for rows in torch.arange(num_rows, device=row.device).split(self._rows_at_once()):
                log_probs = filters.token.log_probs(self.scores[rows].flatten(1))
                mine = (row >= rows[0]) & (row <= rows[-1])
                found[mine] = log_probs[row[mine] - rows[0], slot[mine] * vocab + token[mine]]
            return found
        of_slot = filters.slot.log_probs(self.scores)[row, slot]
        cell, number = torch.unique(self.cells.first[row] + slot, return_inverse=True)
        of_token = torch.empty_like(of_slot)
        first = 0
        for logits in filters.logits(self.scored.hidden[cell], self.scored.head):
            mine = (number >= first) & (number < first + len(logits))
            of_token[mine] = filters.token.log_probs(logits)[number[mine] - first, token[mine]]
            first += len(logits)
        return of_slot + of_token

    def entropies(self) -> Tensor:
        """(rows,) nats: entropy of the distribution from which :meth:`draw` draws each pair of a row."""
        filters = self.filters
        if filters.draws_pairs:
            pieces = self.scores.flatten(1).split(self._rows_at_once())
            return torch.cat([entropy(filters.token.log_probs(scores)) for scores in pieces])
        of_slot = filters.slot.log_probs(self.scores)
        row, slot = (of_slot > -math.inf).nonzero(as_tuple=True)
        hidden = self.scored.hidden[self.cells.first[row] + slot]
        pieces = filters.logits(hidden, self.scored.head)
        of_token = torch.cat([entropy(filters.token.log_probs(logits)) for logits in pieces])
        return entropy(of_slot).index_add(0, row, of_slot[row, slot].exp() * of_token)

    def _pair_log_probs(self, scores: Tensor) -> Tensor:
        """(rows, slots, vocab) nats of the pairs of some rows, drawn from one table each."""
        return self.filters.token.log_probs(scores.flatten(1)).unflatten(1, scores.shape[1:])

    def _rows_at_once(self) -> int:
        """Rows whose pairs are scored together."""
        return max(_PAIRS_AT_ONCE // (self.scores.shape[1] * self.scores.shape[2]), 1)


# Copied from xlm_ilm.insertion_ilm._widen
def _widen(table: Tensor, capacity: int) -> Tensor:
    """(rows, capacity) copy with zeros, or False, in the new columns."""
    wide = table.new_zeros(len(table), capacity)
    wide[:, : table.shape[1]] = table
    return wide
