"""Collators: examples to batches. The noise, masking cells, lives here.

A row is ``prompt... target...``, so the length of the target is given and not modelled. All randomness of a
row comes from its seed: it looks the same in every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import take_top, uniform
from xlm_skeleton.types_skeleton import SkeletonBatch, SkeletonExample, SkeletonPromptBatch

_STREAM_NUMBER = 0
_STREAM_CELLS = 1
_NO_IDS = torch.empty(0, dtype=torch.int64)


class SkeletonCollator:
    """Masks n ~ U{1..L} of the L target tokens that are not given, for the loss and the likelihood.

    Args:
        pad_id: Id of PAD.
        mask_id: Id of MASK.
        max_length: Longest target that is accepted, in tokens; None for any.
    """

    def __init__(self, *, pad_id: int, mask_id: int, max_length: int | None = None) -> None:
        self._pad_id = pad_id
        self._mask_id = mask_id
        self._max_length = max_length

    def __call__(self, examples: Sequence[SkeletonExample]) -> SkeletonBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, or a target is longer than max_length.
        """
        rows = _lay_out(examples, self._pad_id, self._max_length)
        seeds = torch.tensor([example["seed"] for example in examples], dtype=torch.int64)
        num_missing = rows.missing.sum(1)
        number = uniform(seeds, 1, step=0, stream=_STREAM_NUMBER).squeeze(1)
        # Rounding up can turn the largest product into L itself.
        num_masked = (1 + (num_missing * number).long()).clamp(max=num_missing)
        keys = uniform(seeds, rows.ids.shape[1], step=0, stream=_STREAM_CELLS)
        masked = take_top(keys, num_masked, rows.missing)
        masked_row, masked_column = masked.nonzero(as_tuple=True)
        return {
            "input_ids": rows.ids.masked_fill(masked, self._mask_id),
            "attention_mask": rows.attention_mask,
            "target_ids": rows.ids,
            "masked_row": masked_row,
            "masked_column": masked_column,
            "num_missing": num_missing,
        }


class SkeletonPromptCollator:
    """Keeps what is given and masks the rest of the target, of which only the length is read.

    Args:
        pad_id: Id of PAD.
        mask_id: Id of MASK.
        max_length: Longest target that is accepted, in tokens; None for any.
    """

    def __init__(self, *, pad_id: int, mask_id: int, max_length: int | None = None) -> None:
        self._pad_id = pad_id
        self._mask_id = mask_id
        self._max_length = max_length

    def __call__(self, examples: Sequence[SkeletonExample]) -> SkeletonPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, a target is longer than max_length, or an example has none,
                so that its length is unknown.
        """
        if any("target_ids" not in example for example in examples):
            raise ValueError("an example has no target_ids, so its length is unknown")
        rows = _lay_out(examples, self._pad_id, self._max_length)
        return {
            "input_ids": rows.ids.masked_fill(rows.missing, self._mask_id),
            "attention_mask": rows.attention_mask,
            "masked": rows.missing,
            "target_start": rows.target_start,
        }


@dataclass(frozen=True)
class _Rows:
    """Rows without noise, padded on the right, (rows, length) each."""

    ids: Tensor
    attention_mask: Tensor
    missing: Tensor
    """True at target tokens that are not given."""
    target_start: Tensor
    """(rows,)"""


def _lay_out(examples: Sequence[SkeletonExample], pad_id: int, max_length: int | None) -> _Rows:
    if not examples:
        raise ValueError("cannot collate an empty list of examples")
    prompts = [example.get("prompt_ids", _NO_IDS) for example in examples]
    targets = [example.get("target_ids", _NO_IDS) for example in examples]
    longest = max(len(target) for target in targets)
    if max_length is not None and longest > max_length:
        raise ValueError(f"a target has {longest} tokens, the limit is max_length={max_length}")
    rows = [torch.cat(parts) for parts in zip(prompts, targets, strict=True)]
    missing = [
        torch.cat((torch.zeros(len(prompt), dtype=torch.bool), ~_fixed(example)))
        for prompt, example in zip(prompts, examples, strict=True)
    ]
    end = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    return _Rows(
        ids=ids,
        attention_mask=torch.arange(ids.shape[1]) < end,
        missing=pad_sequence(missing, batch_first=True),
        target_start=torch.tensor([len(prompt) for prompt in prompts]),
    )


def _fixed(example: SkeletonExample) -> Tensor:
    """(target,) True at given target tokens."""
    return example.get("fixed", torch.zeros(len(example.get("target_ids", _NO_IDS)), dtype=torch.bool))
