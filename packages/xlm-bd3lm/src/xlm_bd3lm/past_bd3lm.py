"""What stands before a block: clean tokens, evaluated once and kept, or evaluated again with each block."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.modules import BlockCache
from xlm_bd3lm.streams_bd3lm import Streams
from xlm_bd3lm.types_bd3lm import BD3LMNetwork


@dataclass
class Past:
    """Clean tokens of some rows, blocks in order.

    With a cache, tokens are evaluated once, in the first evaluation of a block behind them, [block ; tokens];
    their keys and values are kept. Those that a block had while it was noisy are never kept.
    """

    model: BD3LMNetwork
    ids: Int[Tensor, "rows unread"]
    """Tokens that are not in the cache, and padding anywhere."""
    blocks: Int[Tensor, "rows unread"]
    """Their blocks, rising from 0; -1 at padding."""
    cache: BlockCache | None
    """Keys and values of the tokens before; None to keep none."""

    def select(self, rows: Int[Tensor, " kept"]) -> "Past":
        """That of the given rows."""
        cache = None if self.cache is None else self.cache.of_rows(rows)
        return Past(self.model, self.ids[rows], self.blocks[rows], cache)

    def append(self, ids: Int[Tensor, "rows cells"]) -> None:
        """Add one more block of all rows."""
        block = torch.full_like(ids, self._next())
        self.ids, self.blocks = torch.cat((self.ids, ids), dim=1), torch.cat((self.blocks, block), dim=1)

    def logits(
        self,
        rows: Int[Tensor, " some"],
        input_ids: Int[Tensor, "some cells"],
        attention_mask: Bool[Tensor, "some cells"],
        positions: Int[Tensor, " places"],
    ) -> Float[Tensor, "places vocab"]:
        """Evaluate the next block of some rows, whose cells see each other and the past.

        Args:
            rows: The rows, shape (some,).
            input_ids: Their cells with MASK at masked ones, shape (some, cells).
            attention_mask: False at padding on the right, shape (some, cells).
            positions: Cells to compute logits for, as indices into the some * cells ones, shape (places,).
        """
        unread = self.blocks[rows]
        if self.cache is None or (unread.shape[1] > 0 and bool((unread >= 0).any())):
            return self._read(rows, input_ids, attention_mask, positions)
        real = None if bool(attention_mask.all()) else attention_mask
        cache = self.cache.of_rows(rows).peek()
        logits: Tensor = self.model(input_ids, real, positions=positions, cache=cache)
        return logits

    def _read(self, rows: Tensor, input_ids: Tensor, real: Tensor, positions: Tensor) -> Tensor:
        """Evaluate the block beside the tokens that are not in the cache, and put these into it."""
        part = self.select(rows)
        logits = part._evaluate(input_ids, real, positions)
        if self.cache is None or part.cache is None:
            return logits
        before, batch = self.cache.length, len(self.ids)
        part.cache.forget(before, before + input_ids.shape[1])
        is_all = len(rows) == batch
        self.cache = part.cache if is_all else self.cache.put(rows, part.cache, batch=batch)
        self.blocks = self.blocks.index_fill(0, rows, -1)
        if is_all:
            self.ids, self.blocks = self.ids[:, :0], self.blocks[:, :0]
        return logits

    def _evaluate(self, input_ids: Tensor, real: Tensor, positions: Tensor) -> Tensor:
        """The logits of a block of all rows, beside the tokens that are not in the cache."""
        width = input_ids.shape[1]
        blocks = torch.where(real, self._next(), -1)
        streams = Streams.of((input_ids, blocks), (self.ids, self.blocks), (self.blocks >= 0).sum(1))
        mask, place, states = streams.attention_mask, streams.position_ids, {}
        assert isinstance(mask, Tensor)
        if self.cache is not None:
            mask = mask & torch.cat((real, self.blocks >= 0), dim=1).unsqueeze(2)
            states = {"cache": self.cache}
            if self.cache.length > 0:
                before = self.cache.real
                if before is None:
                    before = mask.new_ones(len(mask), self.cache.length)
                mask = torch.cat((before.unsqueeze(1).expand(-1, mask.shape[1], -1), mask), dim=2)
                place = place + before.sum(1, keepdim=True)
        cells = streams.positions(positions // width, positions % width)
        logits: Tensor = self.model(streams.input_ids, mask, place, positions=cells, **states)
        return logits

    def _next(self) -> int:
        """Number of the block behind those that are not in the cache."""
        return max(int(self.blocks.max()) + 1, 1) if self.blocks.numel() > 0 else 1


@dataclass(frozen=True)
class PastOfRows:
    """The past of some rows, the ``prompts`` of a :class:`xlm.modules.samplers.Denoiser`."""

    past: Past
    rows: Int[Tensor, " some"]

    def of_rows(self, rows: Int[Tensor, " kept"], /) -> "PastOfRows":
        """That of some of these rows."""
        return PastOfRows(self.past, self.rows[rows])

    def logits(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Evaluate the next block of these rows, see :meth:`Past.logits`."""
        return self.past.logits(self.rows, input_ids, attention_mask, positions)
