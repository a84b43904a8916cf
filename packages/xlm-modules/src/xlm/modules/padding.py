"""Work on the real tokens of padded rows only.

The linear layers, norms and activations of a trunk treat each token alone, so on a CPU they run over the real
tokens of a batch, put one after another; only attention needs them in their rows.
"""

from typing import Self

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from xlm.modules.masks import PiecewiseMask

_LEAST_PADDING = 1 / 32
"""Share of padding below which moving tokens takes longer than computing the padding."""


class RealTokens:
    """Where the real tokens of padded rows stand.

    Args:
        mask: True at real tokens, shape (batch, length).
    """

    def __init__(self, mask: Bool[Tensor, "batch length"]) -> None:
        self.shape = mask.shape
        self.cells = mask.flatten().nonzero().squeeze(1)
        self.rows = self.cells // mask.shape[1]

    @classmethod
    def of(cls, mask: Tensor | PiecewiseMask | None) -> Self | None:
        """Those of an attention mask, or None where all tokens are better kept in their rows.

        That is the case if no mask of two axes says what is padding, if little is, or on an accelerator,
        where the number of tokens would have to be fetched and would change from call to call.

        Args:
            mask: The mask of a trunk: shape (batch, length), (batch, length, length), in pieces, or None.
        """
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        if mask.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        tokens = cls(mask)
        return tokens if len(tokens.cells) < (1 - _LEAST_PADDING) * mask.numel() else None

    def pack(self, rows: Shaped[Tensor, "batch length *size"]) -> Shaped[Tensor, "tokens *size"]:
        """The real tokens of all rows, one after another.

        Args:
            rows: What belongs to each token, shape (batch, length, ...).

        Returns:
            The same without padding, shape (tokens, ...).
        """
        return rows.flatten(0, 1).index_select(0, self.cells)

    def pad(self, tokens: Shaped[Tensor, "tokens *size"]) -> Shaped[Tensor, "batch length *size"]:
        """The tokens in their rows, with zeros at the padding; the inverse of :meth:`pack`."""
        rows = tokens.new_zeros(self.shape.numel(), *tokens.shape[1:])
        return rows.index_copy(0, self.cells, tokens).unflatten(0, self.shape)
