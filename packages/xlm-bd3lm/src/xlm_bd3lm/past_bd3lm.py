"""What stands before a block, evaluated once and kept, or evaluated again with each block."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.modules import BlockCache
from xlm_bd3lm.streams_bd3lm import Streams, block_mask
from xlm_bd3lm.types_bd3lm import BD3LMNetwork


class Past(Protocol):
    """Clean tokens of some rows, blocks in order."""

    @property
    def calls(self) -> int:
        """Evaluations of the network for the tokens that are added at a time."""
        ...

    def of_rows(self, rows: Int[Tensor, " kept"], /) -> "Past":
        """That of the given rows, repeated if need be."""
        ...

    def append(self, ids: Int[Tensor, "rows cells"], /) -> "Past":
        """With one more block of all rows."""
        ...

    def logits(
        self,
        input_ids: Int[Tensor, "rows cells"],
        attention_mask: Bool[Tensor, "rows cells"],
        positions: Int[Tensor, " places"],
        /,
    ) -> Float[Tensor, "places vocab"]:
        """Evaluate the next block, whose cells see each other and the past.

        Args:
            input_ids: The cells with MASK at masked ones, shape (rows, cells).
            attention_mask: False at padding on the right, shape (rows, cells).
            positions: Cells to compute logits for, as indices into the rows * cells ones, shape (places,).
        """
        ...


@dataclass(frozen=True)
class KeptPast:
    """Keys and values of clean tokens.

    Those that a block had while it was noisy are never kept: a finished block is evaluated once more.
    """

    model: BD3LMNetwork
    cache: BlockCache
    calls: int = 1

    @staticmethod
    def of(
        model: BD3LMNetwork, ids: Int[Tensor, "rows past"], blocks: Int[Tensor, "rows past"]
    ) -> "KeptPast":
        """Evaluate clean tokens in one call, of the rows that have any.

        Args:
            model: The network.
            ids: The tokens and padding anywhere, shape (rows, past).
            blocks: Their blocks, rising from 0; -1 at padding.
        """
        has_any = (blocks >= 0).any(1)
        cache = BlockCache()
        if bool(has_any.any()):
            ids, blocks = ids[has_any], blocks[has_any]
            mask = real = blocks >= 0
            # Padding may stand inside: a position is the number of tokens on the left.
            place = (real.cumsum(1) - 1).clamp(min=0)
            if int(blocks.max()) > 0:
                mask = block_mask(blocks[:, :0], blocks) & real.unsqueeze(2)
            model(ids, mask, place, positions=place.new_empty(0), cache=cache)
            source = (has_any.cumsum(0) - 1).clamp(min=0)
            cache = cache.of_rows(source, exists=None if bool(has_any.all()) else has_any)
        return KeptPast(model, cache)

    def of_rows(self, rows: Tensor, /) -> "KeptPast":
        """That of the given rows."""
        return KeptPast(self.model, self.cache.of_rows(rows))

    def append(self, ids: Tensor, /) -> "KeptPast":
        """Evaluate a clean block and keep its keys and values; what is kept here stays as it is."""
        cache = self.cache.of_rows(torch.arange(len(ids), device=ids.device))  # shares its tables
        self.model(ids, None, positions=ids.new_empty(0), cache=cache)
        return KeptPast(self.model, cache)

    def logits(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, /) -> Tensor:
        """Evaluate the block alone."""
        real = None if bool(attention_mask.all()) else attention_mask
        logits: Tensor = self.model(input_ids, real, positions=positions, cache=self.cache.peek())
        return logits


@dataclass(frozen=True)
class RecomputedPast:
    """Ids of clean tokens, which are evaluated again beside each block: the same logits, without a cache."""

    model: BD3LMNetwork
    ids: Int[Tensor, "rows past"]
    blocks: Int[Tensor, "rows past"]
    calls: int = 0

    @staticmethod
    def of(
        model: BD3LMNetwork, ids: Int[Tensor, "rows past"], blocks: Int[Tensor, "rows past"]
    ) -> "RecomputedPast":
        """Remember clean tokens; for the arguments see :meth:`KeptPast.of`."""
        return RecomputedPast(model, ids, blocks)

    def of_rows(self, rows: Tensor, /) -> "RecomputedPast":
        """That of the given rows."""
        return RecomputedPast(self.model, self.ids[rows], self.blocks[rows])

    def append(self, ids: Tensor, /) -> "RecomputedPast":
        """With one more block of all rows."""
        block = torch.full_like(ids, self._next())
        return RecomputedPast(
            self.model, torch.cat((self.ids, ids), dim=1), torch.cat((self.blocks, block), dim=1)
        )

    def logits(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor, /) -> Tensor:
        """Evaluate the block and the past side by side."""
        blocks = torch.where(attention_mask, self._next(), -1)
        streams = Streams.of((input_ids, blocks), (self.ids, self.blocks), (self.blocks >= 0).sum(1))
        width = input_ids.shape[1]
        logits: Tensor = self.model(
            streams.input_ids,
            streams.attention_mask,
            streams.position_ids,
            positions=streams.positions(positions // width, positions % width),
        )
        return logits

    def _next(self) -> int:
        """Number of the block behind the past."""
        return max(int(self.blocks.max()) + 1, 1) if self.blocks.numel() > 0 else 1
