"""Which tokens a cell can hold: the loss and the predictor take their softmax over the same ones.

MASK has probability 0, and so has every other id that never occurs in a cell. EOS is possible where the text
may end. Behind it PADs fill its block, so PAD is possible there too, but never in the first cell of a block:
with blocks of one cell there is no PAD, and a row is text and EOS as in an autoregressive model.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.modules import TokenTargets, suppress_tokens


class CellVocabulary:
    """The token ids that are possible at a cell.

    Never MASK and never one of suppressed_ids; but EOS and PAD are possible exactly where they may stand,
    even if suppressed_ids names them.

    Args:
        mask_id: Id of MASK.
        pad_id: Id of PAD, which fills the block behind EOS; it may be EOS itself.
        eos_id: Id of the token that ends a text; None if none does, and a token that separates texts inside a
            row is like any other.
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
        self._only_pads = [token == pad_id != eos_id for token in self.end_ids]
        """Which of them fill a block behind EOS and end no text themselves."""
        self._impossible_in_text = sorted({mask_id, *self.end_ids, *suppressed_ids})

    def restrict(
        self,
        logits: Float[Tensor, "places vocab"],
        may_end: Bool[Tensor, " places"],
    ) -> Float[Tensor, "places vocab"]:
        """Logits with -inf at impossible tokens, in float32 at least.

        Args:
            logits: Logits of cells, shape (places, vocab).
            may_end: True at cells where EOS is possible, shape (places,).
        """
        possible = suppress_tokens(logits, self._impossible_in_text)
        for token in self.end_ids:
            possible[:, token] = logits[:, token].masked_fill(~may_end, -math.inf)
        return possible

    def without_pads(
        self, logits: Float[Tensor, "places vocab"], is_first: Bool[Tensor, " places"]
    ) -> Float[Tensor, "places vocab"]:
        """Logits with -inf at PAD where a cell is the first of its block.

        Args:
            logits: Logits of cells, shape (places, vocab).
            is_first: True at first cells of blocks, shape (places,).
        """
        pads = [token for token, only_pads in zip(self.end_ids, self._only_pads, strict=True) if only_pads]
        if not pads or not bool(is_first.any()):
            return logits
        possible = logits.clone()
        for token in pads:
            possible[:, token] = logits[:, token].masked_fill(is_first, -math.inf)
        return possible

    def targets(
        self,
        token: Int[Tensor, " places"],
        weight: Float[Tensor, " places"],
        may_end: Bool[Tensor, " places"],
        may_pad: Bool[Tensor, " places"],
    ) -> TokenTargets:
        """The tokens of cells, whose softmax is over the possible ones, as the predictor's.

        Args:
            token: The token of each cell, shape (places,).
            weight: Weight of its -log p in the loss, shape (places,).
            may_end: True at cells where EOS is possible, shape (places,).
            may_pad: True at cells where PAD is possible, shape (places,).
        """
        columns = [may_pad if only_pads else may_end for only_pads in self._only_pads]
        return TokenTargets(
            token=token,
            weight=weight,
            suppressed_ids=self._impossible_in_text,
            end_ids=self.end_ids,
            may_end=torch.stack(columns, dim=1),
            wants_best=True,
        )

    def ends(self, ids: Tensor) -> Tensor:
        """True at ids that end a text, of any shape."""
        return torch.isin(ids, torch.tensor(self.end_ids, device=ids.device))
