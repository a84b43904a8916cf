"""Collators: examples to batches. The noise of FlexMDM, absent and masked tokens, lives here.

A row is ``[prompt...] [BOS] [target...]``; prompt, BOS and fixed target tokens have T1 = T2 = 0: they are
always there. The others are absent, MASK or clean by :class:`xlm_flexmdm.Interpolant`.

Which slots are open. A slot is the place right of a column. Those of the prompt are closed. The others are
open where the example has, or may have, a missing token: the slot of BOS unless the first target token is
fixed; the slot of a fixed token only if a token that is not fixed comes next in the example; the slot of any
other target token always. Closed slots are in neither loss nor likelihood, and generation leaves them shut.

All randomness of a row comes from its seed (and its place in the training stream), so a row looks the same in
every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import (
    check_examples,
    check_lengths,
    fixed_of,
    places_of,
    seeds_of,
    stratified_times,
    uniform,
)
from xlm.modules.records import Example
from xlm_flexmdm.interpolant_flexmdm import Interpolant
from xlm_flexmdm.types_flexmdm import FlexMDMBatch, FlexMDMPromptBatch

_STREAM_TIME = 0
_STREAM_INSERTION = 1
_STREAM_UNMASKING = 2
_NO_IDS = torch.empty(0, dtype=torch.int64)

UnmaskingWeight = Literal["hazard", "one"]


class FlexMDMCollator:
    """Noise for the training loss: one time per row, t = 1 - v^p with v uniform on (0, 1).

    The weights are multiplied by |dt/dv| = p v^(p - 1), so p changes the noise of the loss and not its mean.
    The published p = 1 seldom meets times next to 1, where weights grow without bound, and its variance is
    infinite; p = 2 goes there more often, with smaller weights. There is no cut-off near t = 1.

    Args:
        interpolant: The two schedules.
        pad_id: Id of the padding.
        mask_id: Id of MASK.
        bos_id: Id of the token left of the target, whose slot is left of the first target token.
        max_length: The most target tokens, fixed ones included; None for no limit.
        time_power: p, at least 1. Where the examples have a ``place``, v is stratified over neighbouring
            places of the training stream.
        unmasking_weight: Of a masked token in the loss. "hazard": that of the bound, as published. "one": the
            same at all times. The minimiser is the same, but rows that are nearly clean, and easy, count for
            less: no bound, yet a network may find out sooner what to write where little is known.

    Raises:
        ValueError: If time_power is below 1, or unmasking_weight is neither of the two.
    """

    def __init__(
        self,
        *,
        interpolant: Interpolant,
        pad_id: int,
        mask_id: int,
        bos_id: int,
        max_length: int | None = None,
        time_power: float = 2.0,
        unmasking_weight: UnmaskingWeight = "hazard",
    ) -> None:
        if not time_power >= 1:
            raise ValueError(f"time_power must be at least 1, got {time_power}")
        if unmasking_weight not in ("hazard", "one"):
            raise ValueError(f"unmasking_weight must be 'hazard' or 'one', got {unmasking_weight!r}")
        self._noise = _Noise(interpolant, _Layout(pad_id=pad_id, mask_id=mask_id, bos_id=bos_id), max_length)
        self._time_power = time_power
        self._unmasking_weight: UnmaskingWeight = unmasking_weight

    def __call__(self, examples: Sequence[Example]) -> FlexMDMBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than max_length, ``fixed`` does not fit
                its target, or a text holds MASK.
        """
        v = stratified_times(seeds_of(examples), places_of(examples), stream=_STREAM_TIME)
        return self._noise(examples, v, self._time_power, num_draws=1, weight=self._unmasking_weight)


class FlexMDMLikelihoodCollator:
    """Noise for the likelihood: K consecutive rows of each example, at times that cover (0, 1).

    Draw k has t = 1 - v_k^2 with v_k = (k + u_k) / K and u_k ~ U(0, 1), and weights multiplied by
    |dt/dv| = 2v, so the mean over the draws of an example is unbiased and its variance finite.

    Args:
        interpolant: The two schedules.
        pad_id: Id of the padding.
        mask_id: Id of MASK.
        bos_id: Id of the token left of the target.
        max_length: The most target tokens, fixed ones included; None for no limit.
        num_draws: K, at least 1.

    Raises:
        ValueError: If num_draws is below 1.
    """

    def __init__(
        self,
        *,
        interpolant: Interpolant,
        pad_id: int,
        mask_id: int,
        bos_id: int,
        max_length: int | None = None,
        num_draws: int = 8,
    ) -> None:
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}")
        self._noise = _Noise(interpolant, _Layout(pad_id=pad_id, mask_id=mask_id, bos_id=bos_id), max_length)
        self._num_draws = num_draws

    def __call__(self, examples: Sequence[Example]) -> FlexMDMBatch:
        """Make a batch of len(examples) * num_draws rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than max_length, ``fixed`` does not fit
                its target, or a text holds MASK.
        """
        levels = uniform(seeds_of(examples), self._num_draws, step=0, stream=_STREAM_TIME)
        v = ((torch.arange(self._num_draws) + levels) / self._num_draws).flatten()
        repeated = [example for example in examples for _ in range(self._num_draws)]
        return self._noise(repeated, v, 2.0, num_draws=self._num_draws)


class FlexMDMPromptCollator:
    """Keeps the given tokens for generation: the prompt, and the fixed tokens of the target.

    Args:
        pad_id: Id of the padding.
        mask_id: Id of MASK, which no text may hold.
        bos_id: Id of the token left of the target.
        max_length: The most target tokens to generate, fixed ones included.
    """

    def __init__(self, *, pad_id: int, mask_id: int, bos_id: int, max_length: int) -> None:
        self._layout = _Layout(pad_id=pad_id, mask_id=mask_id, bos_id=bos_id)
        self._max_length = max_length

    def __call__(self, examples: Sequence[Example]) -> FlexMDMPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        A target without ``fixed`` is a reference only: nothing of it is read but its length.

        Raises:
            ValueError: If there are no examples, a target is longer than max_length, ``fixed`` does not fit
                its target, or a text holds MASK.
        """
        ids = [example.get("target_ids", _NO_IDS) for example in examples]
        targets = _read_targets(examples, ids, self._max_length)
        rows = self._layout.pack(examples, targets, targets.fixed, torch.zeros_like(targets.fixed))
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
    given: Tensor
    masked: Tensor
    clean_ids: Tensor
    open_slots: Tensor
    gaps: Tensor
    target_start: Tensor
    """(rows,) first column right of BOS."""


@dataclass(frozen=True)
class _Layout:
    """Where the tokens of a row stand."""

    pad_id: int
    mask_id: int
    bos_id: int

    def pack(self, examples: Sequence[Example], targets: _Targets, present: Tensor, masked: Tensor) -> _Rows:
        """Rows of the prompts and the ``present`` target tokens, those ``masked`` as MASK.

        Both are of shape (rows, target).
        """
        prompts = [example.get("prompt_ids", _NO_IDS) for example in examples]
        prompt_ids = torch.cat(prompts)
        if (targets.exists & (targets.ids == self.mask_id)).any() or (prompt_ids == self.mask_id).any():
            raise ValueError(
                f"a text holds MASK (mask_id={self.mask_id}), which stands for what is not known"
            )
        bos_column = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)
        # Column of each present token, and of the next present one on its left for an absent token.
        column = present.cumsum(1).add_(bos_column)
        size = bos_column + 1 + present.sum(1, keepdim=True)
        width = int(size.max())
        columns = torch.arange(width)

        clean_ids = torch.full((len(examples), width + 1), self.pad_id)
        clean_ids[:, :width].masked_scatter_(columns < bos_column, prompt_ids)
        clean_ids.scatter_(1, bos_column, self.bos_id)

        # What is absent is written into one more column, which is then cut off.
        place = column.where(present, width)

        def spread(values: Tensor, start: Tensor) -> Tensor:
            return start.scatter(1, place, values)[:, :width].contiguous()

        nothing = torch.zeros_like(clean_ids, dtype=torch.bool)
        clean = spread(targets.ids, clean_ids)
        hidden = spread(masked, nothing)
        first_fixed = targets.fixed[:, :1].any(1, keepdim=True)
        absent = (targets.exists & ~present).long()
        return _Rows(
            input_ids=clean.masked_fill(hidden, self.mask_id),
            attention_mask=columns < size,
            given=spread(targets.fixed, nothing) | (columns <= bos_column),
            masked=hidden,
            clean_ids=clean,
            open_slots=spread(_open_after(targets), nothing.scatter(1, bos_column, ~first_fixed)),
            gaps=torch.zeros(len(examples), width, dtype=torch.int64).scatter_add(1, column, absent),
            target_start=bos_column.squeeze(1) + 1,
        )


@dataclass(frozen=True)
class _Noise:
    """Rows at random times."""

    interpolant: Interpolant
    layout: _Layout
    max_length: int | None

    def __call__(
        self,
        examples: Sequence[Example],
        v: Tensor,
        power: float,
        *,
        num_draws: int,
        weight: UnmaskingWeight = "hazard",
    ) -> FlexMDMBatch:
        """The batch at times t = 1 - v^power, with v (rows,) uniform numbers."""
        # The smallest v would give t = 1 by rounding, where the weights are infinite.
        t = (1 - v**power).clamp(max=1 - 2.0**-53)
        time_weight = power * v ** (power - 1)
        ids = [example.get("target_ids", _NO_IDS) for example in examples]
        targets = _read_targets(examples, ids, self.max_length)
        target = targets.ids.shape[1]
        hazard = self.interpolant.unmasking_hazard(t) if weight == "hazard" else torch.ones_like(t)
        draw = torch.arange(len(examples)) % num_draws
        # One call for both, since most of its operations are small.
        streams = torch.tensor([_STREAM_INSERTION, _STREAM_UNMASKING]).repeat_interleave(len(examples))
        seeds = seeds_of(examples).repeat(2)
        insertion, unmasking = uniform(seeds, target, step=draw.repeat(2), stream=streams).chunk(2)
        present, masked = self.interpolant.states(t.unsqueeze(1), insertion, unmasking)
        missing = targets.missing
        rows = self.layout.pack(examples, targets, targets.fixed | (present & missing), masked & missing)
        masked_row, masked_column = rows.masked.nonzero(as_tuple=True)
        slot_row, slot_column = rows.open_slots.nonzero(as_tuple=True)
        return {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            "given": rows.given,
            "masked": rows.masked,
            "masked_row": masked_row,
            "masked_column": masked_column,
            "clean_ids": rows.clean_ids,
            "open_slots": rows.open_slots,
            "slot_row": slot_row,
            "slot_column": slot_column,
            "gaps": rows.gaps,
            "target_start": rows.target_start,
            "target_ids": targets.ids,
            "target_lengths": targets.exists.sum(1),
            "target_fixed": targets.fixed,
            "num_missing": missing.sum(1),
            "time": self.interpolant.network_time(t),
            "missing_chance": 1 - self.interpolant.alpha(t),
            "unmasking_weight": hazard * time_weight,
            "insertion_weight": self.interpolant.insertion_hazard(t) * time_weight,
            "num_draws": torch.tensor(num_draws),
            "is_complete": torch.tensor(self.interpolant.is_complete),
        }


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


# Copied from xlm_ilm.datamodule_ilm._open_after
def _open_after(targets: _Targets) -> Tensor:
    """(rows, target) whether the slot of a target token is open: see the head of this file."""
    missing = targets.missing
    open_after = missing.clone()
    open_after[:, :-1] |= missing[:, 1:]
    return open_after
