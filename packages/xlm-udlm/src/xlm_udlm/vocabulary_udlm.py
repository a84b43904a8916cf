"""Which tokens a cell can hold: noise, loss and samplers use the same set.

The uniform distribution of the noise, and every sum over tokens in the bound, run over the K tokens that are
possible at a cell, never over all ids of the tokenizer: special tokens would otherwise be written into texts
by the noise itself. There is no MASK among them; a tokenizer that has one is used as if it had none.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor


class CellVocabulary:
    """The token ids that are possible at a cell.

    Ordinary tokens at every cell; EOS and PAD besides where the text may end, even if suppressed_ids names
    them.

    Args:
        vocab_size: Number of ids, that of the network's logits.
        pad_id: Id of PAD, which fills the cells behind EOS.
        eos_id: Id of the token that ends a text; None if none does: then the first PAD ends it, and a token
            that separates texts inside a row is like any other.
        suppressed_ids: Ids that never stand in a text, such as MASK and BOS.

    Raises:
        ValueError: If an id is not of the vocabulary, or no token is possible in a text.
    """

    def __init__(
        self, *, vocab_size: int, pad_id: int, eos_id: int | None, suppressed_ids: Sequence[int] = ()
    ) -> None:
        self.end_ids = [pad_id] if eos_id is None else sorted({pad_id, eos_id})
        """The ids that end a text."""
        self.impossible_in_text = sorted({*self.end_ids, *suppressed_ids})
        """Ids that are possible at no cell where the text goes on."""
        outside = [token for token in self.impossible_in_text if not 0 <= token < vocab_size]
        if outside:
            raise ValueError(
                f"vocab_size={vocab_size} has no id {outside[0]}, which is PAD, EOS or suppressed"
            )
        text_ids = sorted(set(range(vocab_size)) - set(self.impossible_in_text))
        if not text_ids:
            raise ValueError(f"no token of vocab_size={vocab_size} is left for texts: all are suppressed")
        self.vocab_size, self.num_text = vocab_size, len(text_ids)
        # Ordinary tokens, then those that end a text; not on the device of a context, such as meta.
        self._ids = torch.tensor([*text_ids, *self.end_ids], device="cpu")
        self._index = torch.zeros(vocab_size, dtype=torch.int64, device="cpu")
        self._index[self._ids] = torch.arange(len(self._ids), device="cpu")
        self._is_text = torch.isin(torch.arange(vocab_size, device="cpu"), self._ids[: self.num_text])

    def num_possible(self, may_end: Bool[Tensor, "*cells"]) -> Int[Tensor, "*cells"]:
        """K, the number of possible tokens of each cell; ``may_end`` is True where EOS and PAD are."""
        return self.num_text + len(self.end_ids) * may_end.long()

    def uniform_tokens(
        self, uniforms: Float64[Tensor, "*cells"], may_end: Bool[Tensor, "*cells"]
    ) -> Int[Tensor, "*cells"]:
        """Possible tokens drawn uniformly, one for each number in (0, 1)."""
        return self.tokens_at((uniforms * self.num_possible(may_end)).long(), may_end)

    def tokens_at(
        self, index: Int[Tensor, "*cells"], may_end: Bool[Tensor, "*#cells"]
    ) -> Int[Tensor, "*cells"]:
        """The possible tokens with these numbers, from 0; a number of K or above is the last one's."""
        return self._ids.to(index.device)[index.minimum(self.num_possible(may_end) - 1)]

    def index_of(self, ids: Int[Tensor, "*cells"]) -> Int[Tensor, "*cells"]:
        """Numbers of possible tokens, from 0; ids that are possible nowhere have that of the first one."""
        return self._index.to(ids.device)[ids]

    def are_possible(
        self, ids: Int[Tensor, "*cells"], may_end: Bool[Tensor, "*cells"]
    ) -> Bool[Tensor, "*cells"]:
        """True at ids of the vocabulary that their cells can hold."""
        return self._is_text.to(ids.device)[ids] | (may_end & self.ends(ids))

    def fill_impossible_(
        self, table: Float[Tensor, "cells vocab"], may_end: Bool[Tensor, " cells"], value: float
    ) -> None:
        """Overwrite the columns of impossible tokens of each cell, in place.

        The ids are not copied to the device of the table, which would synchronise with it.
        """
        ends = [table.select(1, token).masked_fill(~may_end, value) for token in self.end_ids]
        for token in self.impossible_in_text:
            table.select(1, token).fill_(value)
        for token, column in zip(self.end_ids, ends, strict=True):
            table.select(1, token).copy_(column)

    def restrict_(self, logits: Float[Tensor, "cells vocab"], may_end: Bool[Tensor, " cells"]) -> None:
        """Set the logits of impossible tokens to -inf, in place."""
        self.fill_impossible_(logits, may_end, -math.inf)

    def ends(self, ids: Int[Tensor, "*cells"]) -> Bool[Tensor, "*cells"]:
        """True at ids that end a text where it may end."""
        return torch.isin(ids, torch.tensor(self.end_ids, device=ids.device))
