"""Attention masks: of packed rows, and in pieces for masks that are empty in most places.

A dense kernel computes the scores of keys that a query does not see all the same. Where neighbouring queries
see few ranges of keys, as in block diffusion, attention goes piece by piece: some queries, the keys that any
of them sees, and the mask among these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def segment_mask(segment_ids: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch length length"]:
    """Attention mask of packed rows: a token sees the tokens of its own segment.

    Args:
        segment_ids: Number of the segment of each token, shape (batch, length); negative for padding, which
            sees nothing and is seen by nothing.

    Returns:
        Mask for :class:`RotaryTransformer`, True where query (axis 1) sees key (axis 2),
        shape (batch, length, length).
    """
    same = segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)
    return same & (segment_ids >= 0).unsqueeze(2)


@dataclass(frozen=True)
class MaskPiece:
    """Some consecutive queries and the keys that any of them sees."""

    keys: Sequence[tuple[int, int]]
    """First column of each range of keys, and the one behind it."""
    mask: Bool[Tensor, "batch queries keys"]
    """True where a query sees a key, the ranges side by side."""

    def take(
        self, table: Float[Tensor, "batch heads length width"]
    ) -> Float[Tensor, "batch heads keys width"]:
        """The keys of a table of all columns."""
        ranges = [table[:, :, low:high] for low, high in self.keys]
        return ranges[0] if len(ranges) == 1 else torch.cat(ranges, dim=2)


@dataclass(frozen=True)
class PiecewiseMask:
    """Who sees whom, piece by piece; all queries in order.

    A trunk accepts it in place of a mask of shape (batch, length, length) if it has the attribute
    ``takes_piecewise_mask = True``; the hidden states are the same.
    """

    pieces: Sequence[MaskPiece]
    block_mask: "BlockMask | None" = None
    """The same for FlexAttention, which is then used: one kernel in place of one for each piece."""

    def attend(
        self,
        query: Float[Tensor, "batch heads length head_dim"],
        key: Float[Tensor, "batch heads length head_dim"],
        value: Float[Tensor, "batch heads length head_dim"],
    ) -> Float[Tensor, "batch heads length head_dim"]:
        """Scaled dot-product attention of each query over the keys that it sees.

        Args:
            query: Queries, shape (batch, heads, length, head_dim).
            key: Keys, same shape.
            value: Values, same shape.
        """
        if self.block_mask is not None:
            found: Tensor = _flex_attention(query.device.type)(query, key, value, block_mask=self.block_mask)
            return found
        queries = query.split([piece.mask.shape[1] for piece in self.pieces], dim=2)
        attended = [
            F.scaled_dot_product_attention(
                some, piece.take(key), piece.take(value), attn_mask=piece.mask.unsqueeze(1)
            )
            for some, piece in zip(queries, self.pieces, strict=True)
        ]
        return torch.cat(attended, dim=2)

    def dense(self) -> Bool[Tensor, "batch length length"]:
        """The same as one table."""
        length = sum(piece.mask.shape[1] for piece in self.pieces)
        first = self.pieces[0].mask
        table = first.new_zeros(len(first), length, length)
        start = 0
        for piece in self.pieces:
            stop, done = start + piece.mask.shape[1], 0
            for low, high in piece.keys:
                table[:, start:stop, low:high] = piece.mask[:, :, done : done + high - low]
                done += high - low
            start = stop
        return table


@cache
def _flex_attention(device_type: str) -> Callable[..., Any]:
    """FlexAttention, compiled where there is a kernel with a gradient; without, it computes all scores."""
    from torch.nn.attention.flex_attention import flex_attention  # importing it takes seconds

    return flex_attention if device_type == "cpu" else torch.compile(flex_attention)


def takes_piecewise_mask(network: object) -> bool:
    """Whether a trunk or network accepts a :class:`PiecewiseMask`, by its attribute of this name."""
    return bool(getattr(network, "takes_piecewise_mask", False))


def default_positions(
    length: int, attention_mask: Tensor | PiecewiseMask | None, device: torch.device
) -> Int[Tensor, "#batch length"]:
    """Number of real tokens to the left of each token, or 0, 1, ... without a mask of two axes."""
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return torch.arange(length, device=device).unsqueeze(0)


def broadcast_over_heads(attention_mask: Tensor) -> Bool[Tensor, "batch 1 #length keys"]:
    """Mask of shape (batch, 1, length or 1, keys) of one of shape (batch, keys) or (batch, length, keys)."""
    return attention_mask.unsqueeze(1) if attention_mask.dim() == 3 else attention_mask[:, None, None]
