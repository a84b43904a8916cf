"""Collators: examples to batches. The noise, deleting tokens, lives here.

A row is ``[CLS] prompt... [BOS] target...``; only target tokens that are not fixed can be deleted.

Which slots are open. A slot is the place right of a column. Those of CLS and of the prompt are closed. The
others are open where the example has, or may have, a missing token: the slot of BOS unless the first target
token is fixed; the slot of a fixed token only if a token that is not fixed comes next in the example; the
slot of any other target token always.

All randomness of a row comes from its seed, so a row looks the same in every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import check_examples, check_lengths, fixed_of, nth_largest, seeds_of, uniform
from xlm.modules.records import Example
from xlm_did.types_did import DIDBatch, DIDPromptBatch

_STREAM_COUNT = 0
_STREAM_TIMES = 1
_NO_IDS = torch.empty(0, dtype=torch.int64)
_NO_LIMIT = 2**31


class DIDCollator:
    """Deletes tokens at random, for the training loss and the likelihood.

    The deletion process gives each token that is not fixed a time, uniform in (0, 1), after which it is
    deleted. Of a target with L such tokens, n ~ U{0..L} have been deleted at the time of the row, which is
    that of the last of them: u ~ Beta(n, L - n + 1), all subsets of n being equally likely. For n = 0,
    u ~ Beta(1, L + 1). This is the split of the bound over n, see :mod:`xlm_did.loss_did`.

    Args:
        pad_id: Id of the padding.
        cls_id: Id of the token that the length head reads.
        bos_id: Id of the token left of the target.
        max_length: The most target tokens, fixed ones included; None for no limit.
        num_draws: K, the number of consecutive rows made from each example. Their n are stratified: draw k
            has n = floor((L + 1) (k + u_k) / K) with u_k ~ U(0, 1), so their mean of any function of the row
            is unbiased and varies less than with independent draws. 1 in training.

    Raises:
        ValueError: If num_draws is below 1.
    """

    def __init__(
        self, *, pad_id: int, cls_id: int, bos_id: int, max_length: int | None = None, num_draws: int = 1
    ) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        self._layout = _Layout(pad_id=pad_id, cls_id=cls_id, bos_id=bos_id)
        self._max_length = max_length
        self._num_draws = num_draws

    def __call__(self, examples: Sequence[Example]) -> DIDBatch:
        """Make a batch of len(examples) * num_draws rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than max_length, or ``fixed`` does not
                fit its target.
        """
        repeated = [example for example in examples for _ in range(self._num_draws)]
        ids = [example.get("target_ids", _NO_IDS) for example in repeated]
        targets = _read_targets(repeated, ids, self._max_length)
        dropped, time = self._delete(repeated, targets.missing)
        kept = targets.exists & ~dropped
        rows = self._layout.pack(repeated, targets, kept)
        row, index = dropped.nonzero(as_tuple=True)
        scored = rows.open_slots & dropped.any(1, keepdim=True)
        scored_row, scored_column = scored.nonzero(as_tuple=True)
        return {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            "open_slots": rows.open_slots,
            "target_start": rows.target_start,
            "scored_row": scored_row,
            "scored_column": scored_column,
            "num_scored": scored.sum(1).tolist(),
            "target_row": row,
            # A deleted token would stand right of the last survivor on its left.
            "target_slot": rows.column[row, index] - 1,
            "target_token": targets.ids[row, index],
            "num_dropped": dropped.sum(1),
            "num_missing": targets.missing.sum(1),
            "most_missing": (_NO_LIMIT if self._max_length is None else self._max_length) - kept.sum(1),
            "time": time,
            "num_draws": torch.tensor(self._num_draws),
        }

    def _delete(self, examples: Sequence[Example], missing: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, target) True at the tokens to delete, and the time u (rows,)."""
        seeds = seeds_of(examples)
        draw = torch.arange(len(examples)) % self._num_draws
        level = uniform(seeds, 1, step=draw, stream=_STREAM_COUNT).squeeze(1)
        survival = uniform(seeds, missing.shape[1] + 1, step=draw, stream=_STREAM_TIMES)
        num_missing = missing.sum(1)
        # The largest quantile of many draws can round to 1, hence the clamp.
        count = ((num_missing + 1) * (draw + level) / self._num_draws).long().clamp(max=num_missing)
        # Deletion times are 1 - survival; that of the last deleted token is the time of the row.
        candidates = survival.masked_fill(~F.pad(missing, (1, 0)), 0.0)
        least = nth_largest(candidates, (count - 1).clamp(min=0))
        dropped = missing & (survival[:, 1:] >= least.unsqueeze(1)) & (count > 0).unsqueeze(1)
        last = 1 - least
        # The least of L + 1 uniform numbers, by inversion.
        before_any = -torch.expm1(survival[:, 0].log() / (num_missing + 1))
        return dropped, torch.where(count > 0, last, before_any)


# Copied from xlm_ilm.datamodule_ilm.ILMPromptCollator
class DIDPromptCollator:
    """Keeps the given tokens for generation: the prompt, and the fixed tokens of the target.

    Args:
        pad_id: Id of the padding.
        cls_id: Id of the token that the length head reads.
        bos_id: Id of the token left of the target.
        max_length: The most target tokens to generate, fixed ones included.
    """

    def __init__(self, *, pad_id: int, cls_id: int, bos_id: int, max_length: int) -> None:
        self._layout = _Layout(pad_id=pad_id, cls_id=cls_id, bos_id=bos_id)
        self._max_length = max_length

    def __call__(self, examples: Sequence[Example]) -> DIDPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        A target without ``fixed`` is for comparison only: it is not read.

        Raises:
            ValueError: If there are no examples, a target with ``fixed`` is longer than max_length, or
                ``fixed`` does not fit its target.
        """
        ids = [example.get("target_ids", _NO_IDS) if "fixed" in example else _NO_IDS for example in examples]
        targets = _read_targets(examples, ids, self._max_length)
        rows = self._layout.pack(examples, targets, targets.fixed)
        return {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            "open_slots": rows.open_slots,
            "target_start": rows.target_start,
            "budget": self._max_length - targets.fixed.sum(1),
        }


# Copied from xlm_ilm.datamodule_ilm._Targets
@dataclass(frozen=True)
class _Targets:
    """The targets side by side, padded to the longest; shape (rows, target) unless noted."""

    ids: Tensor
    exists: Tensor
    """False at padding."""
    fixed: Tensor
    """True at fixed tokens."""

    @property
    def missing(self) -> Tensor:
        """True at tokens that are not fixed."""
        return self.exists & ~self.fixed


@dataclass(frozen=True)
class _Rows:
    """Packed rows, shape (rows, length) unless noted."""

    input_ids: Tensor
    attention_mask: Tensor
    open_slots: Tensor
    target_start: Tensor
    """(rows,) first column right of BOS."""
    column: Tensor
    """(rows, target) column of each target token; of one that is not kept, where it would be inserted."""


# Copied from xlm_ilm.datamodule_ilm._read_targets
def _read_targets(examples: Sequence[Example], ids: list[Tensor], max_length: int | None) -> _Targets:
    check_examples(examples)
    if any("segment_ids" in example for example in examples):
        raise ValueError(
            "this family cannot keep the documents of a packed block apart ('segment_ids'): give one "
            "document per example, or pack without document numbers, which makes a block one text"
        )
    lengths = [len(row) for row in ids]
    check_lengths(lengths, max_length)
    exists = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    fixed = torch.zeros_like(exists)
    if any("fixed" in example for example in examples):
        given = [fixed_of(number, *pair) for number, pair in enumerate(zip(examples, lengths, strict=True))]
        fixed.masked_scatter_(exists, torch.cat(given))
    return _Targets(ids=pad_sequence(ids, batch_first=True), exists=exists, fixed=fixed)


# Copied from xlm_ilm.datamodule_ilm._Layout
@dataclass(frozen=True)
class _Layout:
    """Where the tokens of a row stand."""

    pad_id: int
    cls_id: int
    bos_id: int

    def pack(self, examples: Sequence[Example], targets: _Targets, kept: Tensor) -> _Rows:
        """Rows of the prompts and the ``kept`` (rows, target) target tokens."""
        prompts = [example.get("prompt_ids", _NO_IDS) for example in examples]
        bos_column = torch.tensor([1 + len(prompt) for prompt in prompts]).unsqueeze(1)
        target_start = bos_column + 1
        target_column = kept.cumsum(1).sub_(kept.long()).add_(target_start)
        size = target_start + kept.sum(1, keepdim=True)
        width = int(size.max())

        # What is not kept is written into one more column, which is then cut off.
        place = target_column.where(kept, width)
        column = torch.arange(width + 1)
        input_ids = torch.full((len(examples), width + 1), self.pad_id)
        input_ids[:, 0] = self.cls_id
        input_ids.masked_scatter_((column >= 1) & (column < bos_column), torch.cat(prompts))
        input_ids.scatter_(1, bos_column, self.bos_id).scatter_(1, place, targets.ids)

        first_fixed = targets.fixed[:, :1].any(1, keepdim=True)
        open_slots = (column == bos_column) & ~first_fixed
        open_slots.scatter_(1, place, _open_after(targets))
        return _Rows(
            input_ids=input_ids[:, :width].contiguous(),
            attention_mask=column[:width] < size,
            open_slots=open_slots[:, :width].contiguous(),
            target_start=target_start.squeeze(1),
            column=target_column,
        )


# Copied from xlm_ilm.datamodule_ilm._open_after
def _open_after(targets: _Targets) -> Tensor:
    """(rows, target) whether the slot of a target token is open: see the head of this file."""
    missing = targets.missing
    open_after = missing.clone()
    open_after[:, :-1] |= missing[:, 1:]
    return open_after
