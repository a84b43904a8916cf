"""Where the tokens of a row stand: prompt, BOS, and the cells of the target.

A row is ``prompt... [BOS] target...``. The columns of the target are its cells, in one of two layouts:

*Known length* (target_length=None): one cell for each target token. The model never sees another length than
the right one, so the length is given and not modelled.

*Fixed width* (target_length=W): W cells for each row. Those behind the text hold EOS and then PAD, up to the
full width; a text of W tokens fills the cells and needs no EOS. EOS and PAD are noised and predicted like
tokens, which is how length is modelled. Texts of 0 to W tokens and fillings of this form correspond one to
one.

Where the text may end: at the cells of a fixed width, but only right of the last given token. Nowhere else
are EOS and PAD possible tokens.

A text whose last token is given ends with it: the EOS and PADs behind it are given too.

A target of known length may be a block packed with several documents, whose own special tokens stand in it
already and are tokens like others: then bos_id=None and eos_id=None add none and forbid none. With
``segment_ids`` a token sees its own document only; the batch then holds the numbers of the documents, from
which the loss makes the mask of (length, length) on the device. Positions run on through the block: rotary
attention depends only on the distance of two tokens, which within a document is the same as if they started
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xlm.modules import check_examples, check_lengths, fixed_of, segment_ids_of
from xlm.modules.records import Example

_NO_IDS = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Rows:
    """Rows without noise, padded on the right: (rows, length) each, and per-row values (rows,)."""

    ids: Tensor
    attention_mask: Tensor
    free: Tensor
    """True at cells that are not given."""
    may_end: Tensor
    """True at cells where EOS and PAD are possible tokens."""
    segment_ids: Tensor | None
    """Of packed blocks: the document of each token, -1 at padding."""
    target_start: Tensor
    """First cell."""
    num_tokens: Tensor
    """Raw target tokens that are not given."""

    def repeat(self, times: int) -> "Rows":
        """Each row ``times`` times in succession."""
        tables = {name: table for name, table in vars(self).items() if table is not None}
        return replace(self, **{name: table.repeat_interleave(times, 0) for name, table in tables.items()})


@dataclass(frozen=True)
class Layout:
    """Lays out examples in rows.

    Args:
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none.
        eos_id: Id of EOS; None for no EOS.
        target_length: Cells of every row, at least 1; None for as many as the target has tokens.

    Raises:
        ValueError: If target_length is below 1.
    """

    pad_id: int
    bos_id: int | None
    eos_id: int | None
    target_length: int | None

    def __post_init__(self) -> None:
        if self.target_length is not None and self.target_length < 1:
            raise ValueError(f"target_length must be None or at least 1, got {self.target_length}")

    def lay_out(self, examples: Sequence[Example], *, only_given: bool = False) -> Rows:
        """Prompt, BOS, target and filling of each example in one row.

        With ``only_given``, target tokens that are not given may have any id: they will not be read.

        Raises:
            ValueError: If there are no examples, a target is longer than target_length or holds PAD or EOS,
                or ``fixed`` or ``segment_ids`` do not fit their target.
        """
        check_examples(examples)
        targets = [example.get("target_ids", _NO_IDS) for example in examples]
        prompts = [example.get("prompt_ids", _NO_IDS) for example in examples]
        text_length = torch.tensor([len(target) for target in targets])
        bos = _NO_IDS if self.bos_id is None else torch.tensor([self.bos_id])
        target_start = torch.tensor([len(prompt) + len(bos) for prompt in prompts])
        check_lengths(text_length.tolist(), self.target_length, name="target_length")

        fixed_width = self.target_length is not None
        end = target_start + (text_length if self.target_length is None else self.target_length)
        ids = self._join(prompts, bos, targets, end.tolist())
        end = end.unsqueeze(1)
        column = torch.arange(ids.shape[1])
        cells = (column >= target_start.unsqueeze(1)) & (column < end)
        text = cells & (column < (target_start + text_length).unsqueeze(1))
        given = _given(examples, target_start.tolist(), ids.shape[1])
        self._check_tokens(ids, given if only_given else text)
        last_of_text = column == (target_start + text_length - 1).unsqueeze(1)
        end_is_given = (given & last_of_text).any(1, keepdim=True)
        segment_ids = segment_ids_of(examples)
        if segment_ids is not None and (self.bos_id is not None or fixed_width):
            raise ValueError(
                "a block with 'segment_ids' holds its special tokens already and has no end: set bos_id=None "
                "and target_length=None"
            )
        return Rows(
            ids=ids,
            attention_mask=column < end,
            free=torch.where(end_is_given, text, cells) & ~given,
            may_end=cells & _right_of_last(given) if fixed_width else torch.zeros_like(cells),
            segment_ids=segment_ids,
            target_start=target_start,
            num_tokens=(text & ~given).sum(1),
        )

    def _join(
        self, prompts: Sequence[Tensor], bos: Tensor, targets: Sequence[Tensor], ends: Sequence[int]
    ) -> Tensor:
        """(rows, length) ids: prompt, BOS, target, EOS of a fixed width, PAD up to the longest row."""
        width = max(ends)
        padding = torch.full((width,), self.pad_id)
        eos = _NO_IDS if self.target_length is None or self.eos_id is None else torch.tensor([self.eos_id])
        parts: list[Tensor] = []
        for prompt, target, end in zip(prompts, targets, ends, strict=True):
            text = len(prompt) + len(bos) + len(target)
            # A text that fills its width has no EOS.
            filling = (eos, padding[: width - text - len(eos)]) if text < end else (padding[: width - text],)
            parts += (prompt, bos, target, *filling)
        return torch.cat(parts).view(len(ends), width)

    def _check_tokens(self, ids: Tensor, read: Tensor) -> None:
        special = [index for index in (self.pad_id, self.eos_id) if index is not None]
        wrong = torch.zeros_like(read)
        for index in special:
            wrong |= ids == index
        wrong &= read
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"the target of example {row} holds token id {int(ids[row, column])}, which is PAD or EOS. "
                f"Where EOS separates texts inside a target, set eos_id=None in collators, loss and predictor"
            )


# Copied from xlm_mlm.layout_mlm._given
def _given(examples: Sequence[Example], target_starts: Sequence[int], length: int) -> Tensor:
    """(rows, length) True at given target tokens."""
    given = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, (example, start) in enumerate(zip(examples, target_starts, strict=True)):
        if "fixed" in example:
            size = len(example.get("target_ids", _NO_IDS))
            given[row, start : start + size] = fixed_of(row, example, size)
    return given


def _right_of_last(given: Tensor) -> Tensor:
    """(rows, length) True right of the last given token of a row; everywhere where none is given."""
    return given.flip(1).cumsum(1).flip(1) == 0
