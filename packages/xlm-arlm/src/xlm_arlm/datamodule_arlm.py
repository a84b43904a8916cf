"""Collators: examples to batches. An autoregressive model needs no noise, so these only lay out the tokens.

Training rows are ``prompt... [BOS] target... [EOS]`` and padded on the right, where a causal network does not
see the padding. Rows for generation end with the last given token and are padded on the left.

A target may be a block packed with several documents, whose own special tokens stand in it already: then
bos_id=None and eos_id=None add none. With ``segment_ids`` a token sees its own document only, the first
token of which is given; the batch then holds the numbers of the documents, from which the loss makes the mask
of (length, length) on the device. Positions run on through the block: rotary attention depends only on
the distance of two tokens, which within a document is the same as if they started again.

What stands on the right of a token cannot be given: the fixed tokens of an infilling example must be a prefix
of its target. They are then part of what the model conditions on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import check_examples, check_lengths, fixed_of, segment_ids_of
from xlm.modules.records import Example
from xlm_arlm.types_arlm import ARLMBatch, ARLMPromptBatch

_NO_IDS = torch.empty(0, dtype=torch.int64)


class ARLMCollator:
    """Makes whole rows, for the training loss and the likelihood.

    Args:
        pad_id: Id of the padding.
        bos_id: Id of the token left of the target; None for none: then the first token of a row without
            prompt is given, not predicted.
        eos_id: Id of the token right of the target; None for none: then the length is not modelled.
        max_length: The most target tokens, fixed ones included; None for no limit.
    """

    def __init__(
        self, *, pad_id: int, bos_id: int | None, eos_id: int | None, max_length: int | None = None
    ) -> None:
        self._pad_id = pad_id
        self._bos = _special(bos_id)
        self._eos = _special(eos_id)
        self._max_length = max_length

    def __call__(self, examples: Sequence[Example]) -> ARLMBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, one has no target or more than max_length tokens in it, its
                fixed tokens are not a prefix of its target, or ``segment_ids`` do not fit.
        """
        check_examples(examples)
        num_fixed = [_num_fixed(number, example) for number, example in enumerate(examples)]
        num_prompt = [len(example.get("prompt_ids", _NO_IDS)) for example in examples]
        rows = [self._row(number, example) for number, example in enumerate(examples)]
        check_lengths([len(example.get("target_ids", _NO_IDS)) for example in examples], self._max_length)
        sizes = [len(row) for row in rows]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self._pad_id)
        column, size = torch.arange(input_ids.shape[1]), torch.tensor(sizes).unsqueeze(1)
        # A row's first token has nothing on its left that could predict it.
        num_given = torch.tensor(
            [
                max(prompt + len(self._bos) + fixed, 1)
                for prompt, fixed in zip(num_prompt, num_fixed, strict=True)
            ]
        )
        predictable = (column > 0) & (column < size)
        segment_ids = segment_ids_of(examples)
        if segment_ids is not None and len(self._bos) + len(self._eos) > 0:
            raise ValueError(
                "a block with 'segment_ids' holds its special tokens already: set bos_id=None and eos_id=None"
            )
        if segment_ids is not None:
            predictable[:, 1:] &= segment_ids[:, 1:] == segment_ids[:, :-1]
        is_target = column >= num_given.unsqueeze(1)
        target_row, target_column = (predictable & is_target).nonzero(as_tuple=True)
        given_row, given_column = (predictable & ~is_target).nonzero(as_tuple=True)
        num_targets = torch.bincount(target_row, minlength=len(rows))
        batch: ARLMBatch = {
            "input_ids": input_ids,
            "attention_mask": None,
            "target_row": target_row,
            "target_column": target_column,
            "given_row": given_row,
            "given_column": given_column,
            "num_tokens": (num_targets - len(self._eos)).clamp(min=0),
            "models_length": torch.full((len(rows),), len(self._eos) > 0),
        }
        if segment_ids is not None:
            batch["segment_ids"] = segment_ids
        return batch

    def _row(self, number: int, example: Example) -> Tensor:
        target = example.get("target_ids")
        if target is None:
            raise ValueError(f"example {number} has no 'target_ids': there is nothing to learn from")
        return torch.cat((example.get("prompt_ids", _NO_IDS), self._bos, target, self._eos))


class ARLMPromptCollator:
    """Keeps the given tokens for generation: the prompt, and the fixed tokens of the target.

    Args:
        pad_id: Id of the padding.
        bos_id: Id of the token left of the target; None for none: then each row needs a prompt.
        max_length: The most target tokens to generate, fixed ones included.
    """

    def __init__(self, *, pad_id: int, bos_id: int | None, max_length: int) -> None:
        self._pad_id = pad_id
        self._bos = _special(bos_id)
        self._max_length = max_length

    def __call__(self, examples: Sequence[Example]) -> ARLMPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        A target without ``fixed`` is a reference only, and is not read.

        Raises:
            ValueError: If there are no examples, the fixed tokens of one are more than max_length or not a
                prefix of its target, or one has nothing to start from.
        """
        check_examples(examples)
        num_fixed = [_num_fixed(number, example) for number, example in enumerate(examples)]
        check_lengths(num_fixed, self._max_length, what="fixed target tokens")
        rows = [
            torch.cat(
                (example.get("prompt_ids", _NO_IDS), self._bos, example.get("target_ids", _NO_IDS)[:fixed])
            )
            for example, fixed in zip(examples, num_fixed, strict=True)
        ]
        for number, row in enumerate(rows):
            if len(row) == 0:
                raise ValueError(
                    f"example {number} gives nothing to start from: set bos_id, or give a prompt"
                )
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self._pad_id, padding_side="left")
        size = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.arange(input_ids.shape[1]) >= input_ids.shape[1] - size,
            "num_fixed": torch.tensor(num_fixed),
            "budget": self._max_length - torch.tensor(num_fixed),
        }


def _special(token_id: int | None) -> Tensor:
    """(1,) the token, or (0,) where there is none."""
    return _NO_IDS if token_id is None else torch.tensor([token_id])


def _num_fixed(number: int, example: Example) -> int:
    """Number of fixed tokens, which must be the first of the target."""
    if example.get("fixed") is None:  # no tensors for rows without, which are most
        return 0
    fixed = fixed_of(number, example, len(example.get("target_ids", _NO_IDS)))
    num_fixed = int(fixed.sum())
    if not bool(fixed[:num_fixed].all()):
        places = fixed.nonzero().squeeze(1).tolist()
        raise ValueError(
            f"example {number} fixes the target tokens at {places}, which are not a prefix: an "
            f"autoregressive model is given what stands on the left only; take another family for infilling"
        )
    return num_fixed
