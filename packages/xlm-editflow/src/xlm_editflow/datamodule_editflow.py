"""Collators: examples to batches. The noise, edits that have not been made, lives here.

A row is ``prompt... [BOS] target...``; only target tokens that are not fixed can be edited. Each stretch of
the target that is not given has a source, such as the empty text (:mod:`xlm_editflow.sources_editflow`), and
is aligned with it (:mod:`xlm_editflow.alignment_editflow`).

Which slots are open. A slot is the place right of a column. Those of the prompt are closed. The others are
open where the example has, or may have, a stretch that is not given: the slot of BOS unless the first target
token is fixed; the slot of a fixed token only if a token that is not fixed comes next in the example; the
slot of any other target token always.

All randomness of a row comes from its seed, so a row looks the same in every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import (
    check_examples,
    check_lengths,
    fixed_of,
    nth_largest,
    row_seeds,
    seeds_of,
    seeds_of_draw,
    uniform,
)
from xlm.modules.records import Example
from xlm_editflow.alignment_editflow import BLANK, Alignment, align, check_alignment, pad_texts
from xlm_editflow.rates_editflow import INSERTION, SUBSTITUTION
from xlm_editflow.sources_editflow import Empty, Source
from xlm_editflow.types_editflow import EditFlowBatch, EditFlowPromptBatch

_STREAM_COUNT = 0
_STREAM_TIMES = 1
_NO_IDS = torch.empty(0, dtype=torch.int64)


class EditFlowCollator:
    """Makes some of the edits between source and target, for the training loss and the likelihood.

    Each of the D edits has a time, uniform in (0, 1), below which it has been made. Of a row r ~ U{0..D}
    edits remain at its time, which is that of the last of them: u ~ Beta(r, D - r + 1), all subsets of r
    being equally likely. For r = 0, u ~ Beta(1, D + 1). This is the split of the bound over r, see
    :mod:`xlm_editflow.loss_editflow`.

    Args:
        pad_id: Id of the padding.
        bos_id: Id of the token left of the target.
        source: Where edits start; None for :class:`xlm_editflow.sources_editflow.Empty`.
        alignment: Of source and target: "optimal", "left" or "disjoint", see
            :mod:`xlm_editflow.alignment_editflow`.
        max_length: The most target tokens, fixed ones included; None for no limit.
        num_draws: K, the number of consecutive rows made from each example. Their r are stratified: draw k
            has r = floor((D + 1) (k + u_k) / K) with u_k ~ U(0, 1), so their mean of any function of the row
            is unbiased and varies less than with independent draws. 1 in training.

    Raises:
        ValueError: If num_draws is below 1, or ``alignment`` is another word.
    """

    def __init__(
        self,
        *,
        pad_id: int,
        bos_id: int,
        source: Source | None = None,
        alignment: Alignment = "optimal",
        max_length: int | None = None,
        num_draws: int = 1,
    ) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        check_alignment(alignment)
        self._layout = _Layout(pad_id=pad_id, bos_id=bos_id)
        self._source = Empty() if source is None else source
        self._alignment: Alignment = alignment
        self._max_length = max_length
        self._num_draws = num_draws

    def __call__(self, examples: Sequence[Example]) -> EditFlowBatch:
        """Make a batch of len(examples) * num_draws rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than max_length, or ``fixed`` does not
                fit its target.
        """
        repeated = [example for example in examples for _ in range(self._num_draws)]
        draw = torch.arange(len(repeated)) % self._num_draws
        targets = _Targets.read(repeated, reads_all=True, max_length=self._max_length)
        seeds = seeds_of(repeated)
        own_seeds = torch.stack([seeds_of_draw(k, seeds) for k in range(self._num_draws)])[
            draw, torch.arange(len(draw))
        ]
        stretch_seeds = targets.seeds_of_stretches(own_seeds)
        sources = targets.draw_sources(self._source, stretch_seeds)
        columns = targets.stitch(*align(self._alignment, sources, targets.texts, stretch_seeds))
        pending, time = self._leave(seeds, draw, columns.z0 != columns.z1)
        tokens = columns.z0.where(pending, columns.z1)
        rows = self._layout.pack(repeated, columns, tokens, targets.bos_open)
        written = pending & (columns.z1 != BLANK)
        inserted = written & (columns.z0 == BLANK)
        row, index = written.nonzero(as_tuple=True)
        is_insertion = inserted[row, index]
        # A token would be inserted right of the last one on its left.
        column = rows.column[row, index] - is_insertion.long()
        slots, substituted = (torch.zeros_like(rows.attention_mask) for _ in range(2))
        slots[row[is_insertion], column[is_insertion]] = True
        substituted[row[~is_insertion], column[~is_insertion]] = True
        insert_row, insert_column = slots.nonzero(as_tuple=True)
        substitute_row, substitute_column = substituted.nonzero(as_tuple=True)
        number = torch.zeros(slots.shape, dtype=torch.int64)
        number[insert_row, insert_column] = torch.arange(len(insert_row))
        of_token = torch.zeros_like(number)
        of_token[substitute_row, substitute_column] = len(insert_row) + torch.arange(len(substitute_row))
        delete_row, deleted = (pending & (columns.z1 == BLANK)).nonzero(as_tuple=True)
        return {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            "open_slots": rows.open_slots,
            "editable": rows.editable,
            "target_start": rows.target_start,
            "insert_row": insert_row,
            "insert_column": insert_column,
            "substitute_row": substitute_row,
            "substitute_column": substitute_column,
            "target_row": row,
            "target_column": column,
            "target_cell": number[row, column].where(is_insertion, of_token[row, column]),
            "target_token": columns.z1[row, index],
            "target_operation": torch.where(is_insertion, INSERTION, SUBSTITUTION),
            "delete_row": delete_row,
            "delete_column": rows.column[delete_row, deleted],
            "num_remaining": pending.sum(1),
            "num_edits": (columns.z0 != columns.z1).sum(1),
            "num_missing": targets.num_missing,
            "time": time,
            "num_draws": torch.tensor(self._num_draws),
            "source_is_independent": not self._source.reads_target,
        }

    def _leave(self, seeds: Tensor, draw: Tensor, differs: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, width) True at the edits that remain, and the time u (rows,)."""
        level = uniform(seeds, 1, step=draw, stream=_STREAM_COUNT).squeeze(1)
        survival = uniform(seeds, differs.shape[1] + 1, step=draw, stream=_STREAM_TIMES)
        num_edits = differs.sum(1)
        # The largest quantile of many draws can round to 1, hence the clamp.
        count = ((num_edits + 1) * (draw + level) / self._num_draws).long().clamp(max=num_edits)
        # Times are 1 - survival; that of the last edit that remains is the time of the row.
        candidates = survival.masked_fill(~F.pad(differs, (1, 0)), 0.0)
        least = nth_largest(candidates, (count - 1).clamp(min=0))
        pending = differs & (survival[:, 1:] >= least.unsqueeze(1)) & (count > 0).unsqueeze(1)
        last = 1 - least
        # The least of D + 1 uniform numbers, by inversion.
        before_any = -torch.expm1(survival[:, 0].log() / (num_edits + 1))
        return pending, torch.where(count > 0, last, before_any)


class EditFlowPromptCollator:
    """Makes the rows that generation starts from: the prompt, the fixed tokens of the target, the source.

    Args:
        pad_id: Id of the padding.
        bos_id: Id of the token left of the target.
        max_length: The most target tokens to generate, fixed ones included: nothing is inserted into a text
            of this length. A longer source is possible.
        source: Where edits start: as in training.
    """

    def __init__(self, *, pad_id: int, bos_id: int, max_length: int, source: Source | None = None) -> None:
        self._layout = _Layout(pad_id=pad_id, bos_id=bos_id)
        self._source = Empty() if source is None else source
        self._max_length = max_length

    def __call__(self, examples: Sequence[Example]) -> EditFlowPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        A target without ``fixed`` is for comparison only: it is not read, except by a source that does.

        Raises:
            ValueError: If there are no examples, a target that is read is longer than max_length, or
                ``fixed`` does not fit its target.
        """
        targets = _Targets.read(examples, reads_all=self._source.reads_target, max_length=self._max_length)
        seeds = targets.seeds_of_stretches(seeds_of(examples))
        source = pad_texts(targets.draw_sources(self._source, seeds))
        columns = targets.stitch(source, source)
        rows = self._layout.pack(examples, columns, columns.z0, targets.bos_open)
        return {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            "open_slots": rows.open_slots,
            "editable": rows.editable,
            "target_start": rows.target_start,
            "limit": torch.full((len(examples),), self._max_length),
        }


@dataclass(frozen=True)
class _Stretch:
    """Consecutive target tokens that are not given; in a target without given tokens, all of it."""

    row: int
    first: int
    end: int


@dataclass(frozen=True)
class _Columns:
    """Aligned rows, shape (rows, width)."""

    z0: Tensor
    z1: Tensor
    given: Tensor
    """True at fixed tokens."""
    open_after: Tensor
    """Whether the slot of the column's token is open."""


@dataclass(frozen=True)
class _Rows:
    """Packed rows, shape (rows, length) unless noted."""

    input_ids: Tensor
    attention_mask: Tensor
    open_slots: Tensor
    editable: Tensor
    target_start: Tensor
    """(rows,) first column right of BOS."""
    column: Tensor
    """(rows, width) where the token of each aligned column is; without one, where it would be inserted."""


@dataclass(frozen=True)
class _Targets:
    """The targets that are read, and which of their tokens are fixed."""

    ids: list[Tensor]
    prompts: list[Tensor]
    fixed: list[Tensor | None]
    stretches: list[_Stretch]

    @staticmethod
    def read(examples: Sequence[Example], *, reads_all: bool, max_length: int | None) -> "_Targets":
        """The targets: all of them, or those with ``fixed`` alone, the others being empty."""
        check_examples(examples)
        if any("segment_ids" in example for example in examples):
            raise ValueError(
                "this family cannot keep the documents of a packed block apart ('segment_ids'): give one "
                "document per example, or pack without document numbers, which makes a block one text"
            )
        ids = [
            example.get("target_ids", _NO_IDS) if reads_all or "fixed" in example else _NO_IDS
            for example in examples
        ]
        check_lengths(list(map(len, ids)), max_length)
        fixed = [
            fixed_of(number, example, len(ids[number])) if "fixed" in example else None
            for number, example in enumerate(examples)
        ]
        stretches = [
            stretch for row, given in enumerate(fixed) for stretch in _stretches(row, given, len(ids[row]))
        ]
        prompts = [example.get("prompt_ids", _NO_IDS) for example in examples]
        return _Targets(ids, prompts, fixed, stretches)

    @property
    def num_missing(self) -> Tensor:
        """(rows,) tokens that are not given."""
        return torch.tensor(list(map(len, self.ids))) - self._fixed_table().sum(1)

    @property
    def bos_open(self) -> Tensor:
        """(rows,) whether tokens may be inserted right of BOS."""
        return torch.tensor([fixed is None or not bool(fixed[:1].any()) for fixed in self.fixed])

    @property
    def texts(self) -> list[Tensor]:
        """Token ids of each stretch."""
        return [self.ids[stretch.row][stretch.first : stretch.end] for stretch in self.stretches]

    def seeds_of_stretches(self, seeds: Tensor) -> Tensor:
        """(stretches,) that of the row (rows,) for the first one, others for the rest."""
        row, first = self._places()
        return torch.where(first == 0, seeds[row], row_seeds(0, 1, seeds[row]) + first)

    def draw_sources(self, source: Source, seeds: Tensor) -> list[Tensor]:
        """The source of each stretch.

        Raises:
            ValueError: If it is the prompt and there are fixed tokens.
        """
        if source.reads_prompt and any(fixed is not None and bool(fixed.any()) for fixed in self.fixed):
            raise ValueError(
                "the prompt cannot be the source of a target with fixed tokens: which of its tokens belong "
                "to which gap is not known"
            )
        return source(self.texts, [self.prompts[stretch.row] for stretch in self.stretches], seeds)

    def stitch(self, z0: Tensor, z1: Tensor) -> _Columns:
        """The alignments (stretches, width) of all stretches of each row, with the fixed tokens between."""
        exists = (z0 != BLANK) | (z1 != BLANK)
        if not any(fixed is not None for fixed in self.fixed):
            return _Columns(z0, z1, torch.zeros_like(exists), exists)
        ids, fixed = pad_texts(self.ids), self._fixed_table()
        stretch_row, stretch_first = self._places()
        # Columns that each token takes, the stretches counted at their first one.
        width = F.pad(fixed.long(), (0, 1))
        width.index_put_((stretch_row, stretch_first), exists.sum(1), accumulate=True)
        before = width.cumsum(1) - width
        shape = len(ids), int(width.sum(1).max())
        nothing = torch.zeros(shape, dtype=torch.bool)
        columns = _Columns(torch.full(shape, BLANK), torch.full(shape, BLANK), nothing, nothing.clone())
        row, index = fixed.nonzero(as_tuple=True)
        at = row, before[row, index]
        columns.z0[at] = columns.z1[at] = ids[row, index]
        columns.given[at] = True
        is_missing = F.pad((ids != BLANK) & ~fixed, (0, 1))
        columns.open_after[at] = is_missing[row, index + 1]
        stretch, place = exists.nonzero(as_tuple=True)
        row = stretch_row[stretch]
        at = row, before[row, stretch_first[stretch]] + place
        columns.z0[at], columns.z1[at] = z0[stretch, place], z1[stretch, place]
        columns.open_after[at] = True
        return columns

    def _fixed_table(self) -> Tensor:
        """(rows, target) True at fixed tokens."""
        rows = zip(self.fixed, self.ids, strict=True)
        flags = [torch.zeros(len(ids), dtype=torch.bool) if fixed is None else fixed for fixed, ids in rows]
        return pad_sequence(flags, batch_first=True)

    def _places(self) -> tuple[Tensor, Tensor]:
        """Row and first token of each stretch, (stretches,)."""
        places = [(stretch.row, stretch.first) for stretch in self.stretches]
        row, first = torch.tensor(places, dtype=torch.int64).view(-1, 2).unbind(1)
        return row, first


def _stretches(row: int, fixed: Tensor | None, length: int) -> list[_Stretch]:
    """What is not given of a target, from left to right."""
    if fixed is None or length == 0:
        return [_Stretch(row, 0, length)]
    borders = [0, *(fixed.diff().nonzero().squeeze(1) + 1).tolist(), length]
    return [_Stretch(row, first, end) for first, end in pairwise(borders) if not bool(fixed[first])]


@dataclass(frozen=True)
class _Layout:
    """Where the tokens of a row stand."""

    pad_id: int
    bos_id: int

    def pack(self, examples: Sequence[Example], columns: _Columns, tokens: Tensor, bos_open: Tensor) -> _Rows:
        """Rows of the prompts and the ``tokens`` (rows, width) of the aligned columns, without blanks."""
        prompts = [example.get("prompt_ids", _NO_IDS) for example in examples]
        kept = tokens != BLANK
        bos_column = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)
        target_start = bos_column + 1
        column_of = kept.cumsum(1).sub_(kept.long()).add_(target_start)
        size = target_start + kept.sum(1, keepdim=True)
        width = int(size.max())

        # What is not kept is written into one more column, which is then cut off.
        place = column_of.where(kept, width)
        column = torch.arange(width + 1)
        input_ids = torch.full((len(examples), width + 1), self.pad_id)
        input_ids.masked_scatter_(column < bos_column, torch.cat(prompts))
        input_ids.scatter_(1, bos_column, self.bos_id).scatter_(1, place, tokens)
        open_slots = (column == bos_column) & bos_open.unsqueeze(1)
        open_slots.scatter_(1, place, columns.open_after)
        editable = torch.zeros_like(open_slots).scatter_(1, place, ~columns.given)
        return _Rows(
            input_ids=input_ids[:, :width].contiguous(),
            attention_mask=column[:width] < size,
            open_slots=open_slots[:, :width].contiguous(),
            editable=editable[:, :width].contiguous(),
            target_start=target_start.squeeze(1),
            column=column_of,
        )
