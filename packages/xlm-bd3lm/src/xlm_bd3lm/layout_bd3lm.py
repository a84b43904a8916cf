"""Where the tokens of a row stand: prompt, BOS, and the cells of the target in blocks.

A row is ``prompt... [BOS] target...``. The columns of the target are its cells; cell i, from 0, belongs to
block 1 + floor(i / D) of its own row, prompt and BOS are block 0. Blocks depend on these numbers only, so
rows with prompts of different lengths need no alignment.

*Modelled length* (with max_target_length and EOS): a text of n tokens, then EOS, then PAD up to the end of
that block, so a row has floor(n / D) + 1 blocks. EOS is always there, and no block follows it. EOS and PAD
are masked and predicted like tokens. EOS is possible right of the last given token; PAD too, but not in the
first cell of a block. With D = 1 a row is the text and EOS, without any PAD.

*Given length* (otherwise): one cell for each target token, the last block may be shorter.

A text whose last token is given ends with it: the EOS and PADs behind it are given too. Given cells are seen
by their own and by later blocks, never by earlier ones.

A target of given length may be packed with several documents, whose own special tokens stand in it already
and are tokens like others: then bos_id=None and eos_id=None add none and forbid none. With ``segment_ids`` a
token sees its own document only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlm.modules import check_examples, check_lengths, fixed_of, segment_ids_of
from xlm.modules.records import Example

_NO_IDS = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Rows:
    """Rows without noise: tables (rows, cells), padded on the right, and per-row values (rows,)."""

    ids: Tensor
    blocks: Tensor
    """Number of the block, from 1; -1 at padding."""
    eligible: Tensor
    """True at cells that are not given."""
    may_end: Tensor
    """True at cells where EOS is possible."""
    may_pad: Tensor
    """True at cells where PAD is possible."""
    segment_ids: Tensor | None
    """Of packed blocks: the document of each token, -1 at padding."""
    prompt_ids: Tensor
    """(rows, prompt) prompt and BOS, padded on the right."""
    prompt_length: Tensor
    num_tokens: Tensor
    """Raw target tokens that are not given."""

    @property
    def exists(self) -> Tensor:
        """False at padding."""
        return self.blocks > 0

    def repeat(self, times: int) -> "Rows":
        """Each row ``times`` times in succession."""
        tables = {name: table for name, table in vars(self).items() if table is not None}
        return replace(self, **{name: table.repeat_interleave(times, 0) for name, table in tables.items()})

    def past(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids, blocks and documents (rows, past) of prompt, BOS and all blocks but the last of each row."""
        last = self.blocks.amax(1, keepdim=True) if self.blocks.shape[1] > 0 else self.blocks
        cells = (self.exists & (self.blocks < last)).sum(1)
        length = (self.prompt_length + cells).unsqueeze(1)
        column = torch.arange(int(length.max()))
        cell = column - self.prompt_length.unsqueeze(1)
        source = torch.where(cell < 0, column, self.prompt_ids.shape[1] + cell).where(column < length, 0)
        ids = torch.cat((self.prompt_ids, self.ids), dim=1).gather(1, source)
        blocks = torch.cat((torch.zeros_like(self.prompt_ids), self.blocks), dim=1).gather(1, source)
        segments = None
        if self.segment_ids is not None:  # without prompt
            segments = self.segment_ids.gather(1, source).where(column < length, -1)
        return ids.where(column < length, 0), blocks.where(column < length, -1), segments


@dataclass(frozen=True)
class Layout:
    """Lays out examples in rows.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD.
        bos_id: Id of the token left of the target; None for none.
        eos_id: Id of EOS; None for no EOS.
        block_length: D, at least 1.
        max_target_length: The most target tokens, at least 1; None for no limit, and a given length.

    Raises:
        ValueError: If a length is below 1.
    """

    mask_id: int
    pad_id: int
    bos_id: int | None
    eos_id: int | None
    block_length: int
    max_target_length: int | None

    def __post_init__(self) -> None:
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1, got {self.block_length}")
        if self.max_target_length is not None and self.max_target_length < 1:
            raise ValueError(f"max_target_length must be None or at least 1, got {self.max_target_length}")

    @property
    def models_length(self) -> bool:
        """Whether the text ends with EOS."""
        return self.eos_id is not None and self.max_target_length is not None

    def lay_out(self, examples: Sequence[Example], *, for_generation: bool = False) -> Rows:
        """Prompt, BOS, target and filling of each example.

        ``for_generation``, target tokens that are not given may have any id, as they will not be read, and a
        row whose end is not given has all blocks that max_target_length reaches.

        Raises:
            ValueError: If there are no examples, a target is longer than max_target_length or holds MASK, PAD
                or EOS, or ``fixed`` or ``segment_ids`` do not fit their target.
        """
        check_examples(examples)
        targets = [example.get("target_ids", _NO_IDS) for example in examples]
        lengths = [len(target) for target in targets]
        check_lengths(lengths, self.max_target_length, name="max_target_length")
        given = [
            fixed_of(number, example, length)
            for number, (example, length) in enumerate(zip(examples, lengths, strict=True))
        ]
        length = torch.tensor(lengths).unsqueeze(1)
        end_is_given = torch.tensor([[bool(fixed[-1:].any())] for fixed in given])
        num_cells = self._num_cells(length, end_is_given, for_generation=for_generation)
        width = int(num_cells.max())
        column = torch.arange(width)
        exists, text = column < num_cells, column < length
        ids = _padded(targets, width, self.pad_id)
        is_given = _padded(given, width, value=False)
        self._check_tokens(ids, is_given if for_generation else text)
        if self.models_length:
            assert self.eos_id is not None
            ids = ids.masked_fill(column == length, self.eos_id)
        may_end = exists & _right_of_last(is_given) & self.models_length
        prompts = [self._prompt(example) for example in examples]
        return Rows(
            ids=ids,
            blocks=torch.where(exists, 1 + column // self.block_length, -1),
            eligible=torch.where(end_is_given, text, exists) & ~is_given,
            may_end=may_end,
            may_pad=may_end & (column % self.block_length != 0),
            segment_ids=self._segments(examples),
            prompt_ids=pad_sequence(prompts, batch_first=True, padding_value=self.pad_id),
            prompt_length=torch.tensor([len(prompt) for prompt in prompts]),
            num_tokens=(text & ~is_given).sum(1),
        )

    def _num_cells(self, length: Tensor, end_is_given: Tensor, *, for_generation: bool) -> Tensor:
        """(rows, 1) cells of each row, of text lengths (rows, 1)."""
        if not self.models_length:
            return length
        assert self.max_target_length is not None
        filled = (length // self.block_length + 1) * self.block_length
        if not for_generation:
            return filled
        most = -(-self.max_target_length // self.block_length) * self.block_length
        return torch.where(end_is_given, filled, most)

    def _prompt(self, example: Example) -> Tensor:
        prompt = example.get("prompt_ids", _NO_IDS)
        return prompt if self.bos_id is None else torch.cat((prompt, torch.tensor([self.bos_id])))

    def _segments(self, examples: Sequence[Example]) -> Tensor | None:
        segment_ids = segment_ids_of(examples)
        if segment_ids is not None and (self.bos_id is not None or self.models_length):
            raise ValueError(
                "a block with 'segment_ids' holds its special tokens already and has no end: set bos_id=None "
                "and eos_id=None"
            )
        return segment_ids

    def _check_tokens(self, ids: Tensor, read: Tensor) -> None:
        special = [index for index in (self.mask_id, self.pad_id, self.eos_id) if index is not None]
        wrong = torch.isin(ids, torch.tensor(special)) & read
        if wrong.any():
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"the target of example {row} holds token id {int(ids[row, column])}, which is MASK, PAD or "
                f"EOS. Where EOS separates texts inside a target, set eos_id=None in collators, loss and "
                f"predictor"
            )


def _padded(tables: Sequence[Tensor], width: int, value: int) -> Tensor:
    """(rows, width) some tables (length,) each, filled up on the right; width is at least their longest."""
    padded = pad_sequence(list(tables), batch_first=True, padding_value=value)
    return torch.nn.functional.pad(padded, (0, width - padded.shape[1]), value=value)


# Copied from xlm_mlm.layout_mlm._right_of_last
def _right_of_last(given: Tensor) -> Tensor:
    """(rows, length) True right of the last given token of a row; everywhere where none is given."""
    return given.flip(1).cumsum(1).flip(1) == 0
