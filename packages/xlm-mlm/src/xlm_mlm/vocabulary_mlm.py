"""Which tokens a cell can hold: the loss and the predictor take their softmax over the same ones.

Training on a softmax that gives MASK some probability, and drawing from it, lets a cell be "unmasked" into
MASK. Here MASK has probability 0, and so has every other id that never occurs in a cell.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.modules import TokenTargets, suppress_tokens


class CellVocabulary:
    """The token ids that are possible at a cell.

    Never MASK and never one of suppressed_ids; but EOS and PAD are possible exactly where the text may end,
    even if suppressed_ids names them.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD, which fills the cells behind EOS.
        eos_id: Id of the token that ends a text; None if none does: then the first PAD ends it, and a token
            that separates texts inside a row is like any other.
        suppressed_ids: Further ids that never stand in a text.

    Raises:
        ValueError: If MASK is also PAD or EOS.
    """

    def __init__(
        self, *, mask_id: int, pad_id: int, eos_id: int | None, suppressed_ids: Sequence[int] = ()
    ) -> None:
        if mask_id in (pad_id, eos_id):
            raise ValueError(f"mask_id must differ from pad_id and eos_id, got {mask_id} for both")
        self.end_ids = [pad_id] if eos_id is None else sorted({pad_id, eos_id})
        """The ids that end a text."""
        self._impossible_in_text = sorted({mask_id, *self.end_ids, *suppressed_ids})

    def restrict(
        self, logits: Float[Tensor, "cells vocab"], may_end: Bool[Tensor, " cells"]
    ) -> Float[Tensor, "cells vocab"]:
        """Logits with -inf at impossible tokens, in float32 at least.

        Args:
            logits: Logits of cells, shape (cells, vocab).
            may_end: True at cells where EOS and PAD are possible, shape (cells,).
        """
        possible = suppress_tokens(logits, self._impossible_in_text)
        for token in self.end_ids:
            possible[:, token] = logits[:, token].masked_fill(~may_end, -math.inf)
        return possible

    def targets(
        self,
        token: Int[Tensor, " cells"],
        weight: Float[Tensor, " cells"],
        may_end: Bool[Tensor, " cells"],
    ) -> TokenTargets:
        """The tokens of cells, whose softmax is over the possible ones, as in :meth:`restrict`.

        Args:
            token: The token of each cell, shape (cells,).
            weight: Weight of its -log p in the loss, shape (cells,).
            may_end: True at cells where EOS and PAD are possible, shape (cells,).
        """
        return TokenTargets(
            token=token,
            weight=weight,
            suppressed_ids=self._impossible_in_text,
            end_ids=self.end_ids,
            may_end=may_end,
            wants_best=True,
        )

    def ends(self, ids: Tensor) -> Tensor:
        """True at ids that end a text, of any shape."""
        return torch.isin(ids, torch.tensor(self.end_ids, device=ids.device))
