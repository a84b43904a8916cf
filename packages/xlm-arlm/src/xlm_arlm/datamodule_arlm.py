"""Collators: examples to batches. An autoregressive model needs no noise, so these only lay out the tokens.

Training rows are ``prompt... [BOS] target... [EOS]`` and padded on the right, where a causal network does not
see the padding. Rows for generation end with the last given token and are padded on the left.

What stands on the right of a token cannot be given: the fixed tokens of an infilling example must be a prefix
of its target. They are then part of what the model conditions on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm_arlm.types_arlm import ARLMBatch, ARLMExample, ARLMPromptBatch

_NO_IDS = torch.empty(0, dtype=torch.int64)


class ARLMCollator:
    """Makes whole rows, for the training loss and the likelihood.

    Args:
        pad_id: Id of the padding.
        bos_id: Id of the token left of the target.
        eos_id: Id of the token right of the target.
        max_length: The most target tokens, fixed ones included; None for no limit.
    """

    def __init__(self, *, pad_id: int, bos_id: int, eos_id: int, max_length: int | None = None) -> None:
        self._pad_id = pad_id
        self._bos = torch.tensor([bos_id])
        self._eos = torch.tensor([eos_id])
        self._max_length = max_length

    def __call__(self, examples: Sequence[ARLMExample]) -> ARLMBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        Raises:
            ValueError: If there are no examples, one has no target or more than max_length tokens in it, or
                its fixed tokens are not a prefix of its target.
        """
        _require_examples(examples)
        num_fixed = torch.tensor([_num_fixed(number, example) for number, example in enumerate(examples)])
        num_prompt = torch.tensor([len(example.get("prompt_ids", _NO_IDS)) for example in examples])
        rows = [self._row(number, example) for number, example in enumerate(examples)]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self._pad_id)
        column = torch.arange(input_ids.shape[1])
        size = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        num_given = (num_prompt + 1 + num_fixed).unsqueeze(1)
        return {
            "input_ids": input_ids,
            "attention_mask": column < size,
            "target_mask": (column >= num_given) & (column < size),
        }

    def _row(self, number: int, example: ARLMExample) -> Tensor:
        target = example.get("target_ids")
        if target is None:
            raise ValueError(f"example {number} has no 'target_ids': there is nothing to learn from")
        _require_length(f"example {number} has", len(target), self._max_length)
        return torch.cat((example.get("prompt_ids", _NO_IDS), self._bos, target, self._eos))


class ARLMPromptCollator:
    """Keeps what is given, for generation: the prompt, and of the target only the fixed tokens.

    Args:
        pad_id: Id of the padding.
        bos_id: Id of the token left of the target.
        max_length: The most target tokens to generate, fixed ones included.
    """

    def __init__(self, *, pad_id: int, bos_id: int, max_length: int) -> None:
        self._pad_id = pad_id
        self._bos = torch.tensor([bos_id])
        self._max_length = max_length

    def __call__(self, examples: Sequence[ARLMExample]) -> ARLMPromptBatch:
        """Make a batch of len(examples) rows, padded to the longest.

        A target without ``fixed`` is a reference only, and is not read.

        Raises:
            ValueError: If there are no examples, or the fixed tokens of one are more than max_length or not a
                prefix of its target.
        """
        _require_examples(examples)
        num_fixed = [_num_fixed(number, example) for number, example in enumerate(examples)]
        for number, length in enumerate(num_fixed):
            _require_length(f"example {number} fixes", length, self._max_length)
        rows = [
            torch.cat(
                (example.get("prompt_ids", _NO_IDS), self._bos, example.get("target_ids", _NO_IDS)[:fixed])
            )
            for example, fixed in zip(examples, num_fixed, strict=True)
        ]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self._pad_id, padding_side="left")
        size = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.arange(input_ids.shape[1]) >= input_ids.shape[1] - size,
            "num_fixed": torch.tensor(num_fixed),
            "room": self._max_length - torch.tensor(num_fixed),
        }


def _require_examples(examples: Sequence[ARLMExample]) -> None:
    if not examples:
        raise ValueError("cannot collate an empty list of examples")


def _require_length(what: str, length: int, max_length: int | None) -> None:
    if max_length is not None and length > max_length:
        raise ValueError(
            f"{what} {length} target tokens, the limit is max_length={max_length}: "
            f"leave such examples out, or raise the limit"
        )


def _num_fixed(number: int, example: ARLMExample) -> int:
    """Number of fixed tokens, which must be the first of the target."""
    fixed = example.get("fixed")
    if fixed is None:
        return 0
    length = len(example.get("target_ids", _NO_IDS))
    if len(fixed) != length:
        raise ValueError(f"example {number}: 'fixed' has {len(fixed)} entries for {length} target tokens")
    num_fixed = int(fixed.sum())
    if not bool(fixed[:num_fixed].all()):
        places = fixed.nonzero().squeeze(1).tolist()
        raise ValueError(
            f"example {number} fixes the target tokens at {places}, which are not a prefix: an "
            f"autoregressive model is given what stands on the left only; take another family for infilling"
        )
    return num_fixed
