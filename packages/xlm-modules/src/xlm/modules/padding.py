"""Work on some tokens of rows only.

The linear layers, norms and activations of a trunk treat each token alone, so on a CPU they run over the real
tokens of a batch, put one after another; only attention needs them in their rows, of which it leaves out the
padding on the right where that takes long. What follows the attention of the last block is needed only at the
cells whose hidden states are wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from xlm.modules.masks import PiecewiseMask

_LEAST_PADDING = 1 / 32
"""Share of padding below which moving tokens takes longer than computing the padding."""
_LEAST_LENGTH = 256
"""Columns from which attention row by row takes less time than that over the padding."""


class PackedTokens:
    """Where some tokens of rows stand.

    Args:
        cells: Their indices into the batch * length cells, shape (tokens,).
        shape: (batch, length).
    """

    def __init__(self, cells: Int[Tensor, " tokens"], shape: torch.Size) -> None:
        self.shape = shape
        self.cells = cells
        self.rows = cells // shape[1]

    @classmethod
    def real(cls, mask: Tensor | PiecewiseMask | None) -> Self | None:
        """The real ones by an attention mask, or None where all tokens are better kept in their rows.

        That is the case if no mask of two axes says what is padding, if little is, or on an accelerator,
        where the number of tokens would have to be fetched and would change from call to call.

        Args:
            mask: The mask of a trunk: shape (batch, length), (batch, length, length), in pieces, or None.
        """
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        if mask.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        tokens = cls(mask.flatten().nonzero().squeeze(1), mask.shape)
        return tokens if len(tokens.cells) < (1 - _LEAST_PADDING) * mask.numel() else None

    def pack(self, rows: Shaped[Tensor, "batch length *size"]) -> Shaped[Tensor, "tokens *size"]:
        """What belongs to these tokens, one after another.

        Args:
            rows: What belongs to each token of the rows, shape (batch, length, ...).

        Returns:
            The same of these tokens, shape (tokens, ...).
        """
        return rows.flatten(0, 1).index_select(0, self.cells)

    def pad(self, tokens: Shaped[Tensor, "tokens *size"]) -> Shaped[Tensor, "batch length *size"]:
        """The tokens in their rows, with zeros at all others; the inverse of :meth:`pack`."""
        rows = tokens.new_zeros(self.shape.numel(), *tokens.shape[1:])
        return rows.index_copy(0, self.cells, tokens).unflatten(0, self.shape)


@dataclass(frozen=True)
class RowwiseMask:
    """The mask of padded rows, in attention row by row up to the last real token of each."""

    mask: Bool[Tensor, "batch 1 #length keys"]
    lengths: Sequence[int]

    @classmethod
    def of(
        cls, mask: Tensor | PiecewiseMask | None, tokens: PackedTokens | None
    ) -> Self | Tensor | PiecewiseMask | None:
        """A mask of the trunk, row by row where the padding takes longer than a call for each row."""
        if tokens is None or not isinstance(mask, Tensor) or tokens.shape[1] < _LEAST_LENGTH:
            return mask
        columns = tokens.cells % tokens.shape[1] + 1
        lengths = columns.new_ones(tokens.shape[0]).scatter_reduce(0, tokens.rows, columns, "amax")
        return cls(mask, lengths.tolist())

    def attend(
        self,
        query: Float[Tensor, "batch heads length head_dim"],
        key: Float[Tensor, "batch heads length head_dim"],
        value: Float[Tensor, "batch heads length head_dim"],
    ) -> Float[Tensor, "batch heads length head_dim"]:
        """Scaled dot-product attention of each row; zeros behind its last real token."""
        length = query.shape[2]
        rows = zip(
            query.split(1), key.split(1), value.split(1), self.mask.split(1), self.lengths, strict=True
        )
        attended = [
            F.scaled_dot_product_attention(
                q[:, :, :n], k[:, :, :n], v[:, :, :n], attn_mask=mask[:, :, :n, :n]
            )
            for q, k, v, mask, n in rows
        ]
        return torch.cat([F.pad(row, (0, 0, 0, length - row.shape[2])) for row in attended])


def embed(
    embedding: nn.Embedding, input_ids: Tensor, embedded: Tensor | None, tokens: PackedTokens | None
) -> Float[Tensor, "*tokens d_model"]:
    """What the first block reads: embeddings of the ids, or ``embedded``; of the real tokens alone."""
    found: Tensor = embedding(input_ids) if embedded is None else embedded
    return found if tokens is None else tokens.pack(found)


def pack_wanted(
    hidden: Shaped[Tensor, "*tokens size"], tokens: PackedTokens | None, wanted: PackedTokens | None
) -> Shaped[Tensor, "*wanted size"]:
    """Those of the hidden states that the rest of the last block is computed for.

    Args:
        hidden: Hidden states, shape (batch, length, size), or those of ``tokens``, shape (tokens, size).
        tokens: Where they stand, if not in their rows.
        wanted: Where the wanted ones stand; None for all of them.
    """
    if wanted is None:
        return hidden
    return wanted.pack(hidden if tokens is None else tokens.pad(hidden))
